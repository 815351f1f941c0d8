"""Trains, evaluates and reports by a recipe. The same command goes on where it was stopped.

Exit status: 0 done; 1 a sentence says what is wrong; 130 and 143 stopped by Ctrl-C and SIGTERM, by
words that say from which step the same command goes on.
"""

import gc
import sys
from collections.abc import Sequence

from egmae_jax import experiment
from egmae_jax.commands.arguments import Parser
from egmae_jax.core import console, hosts, platform, preemption, sharding
from egmae_jax.run import trackers
from egmae_jax.run.workdir import local_folder


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae train`."""
    options = _parser().read(arguments)
    console.set_up_logging()
    if options.deterministic:
        platform.make_deterministic()
    preemption.install()
    hosts.join(options.coordinator, options.num_processes, options.process_id)
    sharding.require_devices()
    console.set_up_logging(quiet=not hosts.is_primary())
    preemption.install()  # again: JAX takes SIGTERM where hosts join
    gc.freeze()  # what was imported stays: the collections while JAX traces need not visit it
    try:
        workdir = local_folder(options.workdir)
        chosen = [
            trackers.load(name, options.config, workdir)
            for name in options.tracker
            if hosts.is_primary()
        ]
        experiment.run(options.config, workdir, stage=options.stage, trackers=chosen)
    except preemption.Preempted as stop:
        stop.exit()


def _parser() -> Parser:
    parser = Parser("train", __doc__)
    parser.add_config("configs/busi.py or configs/busi.py:cpu")
    add = parser.add_argument
    add("--workdir", required=True, metavar="FOLDER",
        help="folder for all results; goes on with what is in it")  # fmt: skip
    add("--stage", choices=experiment.STAGES, default="all",
        help="part of the recipe to run; evaluate makes predictions and results anew")  # fmt: skip
    add("--tracker", action="append", default=[], metavar="MODULE:FUNCTION",
        help="makes a tracker, which gets the metrics of every epoch; may be repeated")  # fmt: skip
    add("--deterministic", action="store_true",
        help="on a GPU: the same bits in every run, at some cost; a CPU has them")  # fmt: skip
    group = parser.add_argument_group("several hosts", "TPU pods, SLURM and Open MPI need none.")
    group.add_argument("--coordinator", metavar="ADDRESS:PORT", help="address of process 0")
    group.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process_id", type=int, metavar="I", help="index of this process, from 0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
