"""Runs the recipe: python main.py --config=configs/busi.py --workdir=runs/busi."""

import gc

from absl import app, flags
from ml_collections import config_flags

from egmae_jax import experiment
from egmae_jax.core import console, platform, preemption, sharding
from egmae_jax.run import config as configs
from egmae_jax.run import trackers
from egmae_jax.run.workdir import local_folder

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Recipe, e.g. configs/busi.py:cpu.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for all results; resumes what is in it.")
_STAGE = flags.DEFINE_enum("stage", "all", experiment.STAGES, "Which part of the recipe to run.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Several hosts: address:port of process 0. TPU pods and SLURM need none."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several hosts: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several hosts: which one this is, from 0.")
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic",
    False,
    "On a GPU: the same bits in every run, at some cost. A CPU has them.",
)
_TRACKER = flags.DEFINE_multi_string(
    "tracker", [], "module:function of what is told of every epoch; docs/howto/watch.md."
)
flags.mark_flags_as_required(["config", "workdir"])


@console.user_errors()
def main(argv: list[str]) -> None:
    """Runs the experiment; a mistake of the user ends in a sentence, not in a traceback."""
    console.set_up_logging()
    if _DETERMINISTIC.value:
        platform.make_deterministic()
    preemption.install()
    sharding.join_hosts(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    sharding.require_devices()
    console.set_up_logging(quiet=not sharding.is_primary())
    preemption.install()  # again: JAX takes SIGTERM where hosts join
    gc.freeze()  # what was imported stays: the collections while JAX traces need not visit it
    if argv[1:]:
        console.fail(f"What is {' '.join(argv[1:])!r}? Flags begin with --, such as --stage=all.")
    try:
        workdir = local_folder(_WORKDIR.value)
        told = [
            trackers.load(name, _CONFIG.value, workdir)
            for name in _TRACKER.value
            if sharding.is_primary()
        ]
        experiment.run(_CONFIG.value, workdir, stage=_STAGE.value, trackers=told)
    except preemption.Preempted as stop:
        stop.exit()


if __name__ == "__main__":
    app.run(main, flags_parser=configs.parse_flags)
