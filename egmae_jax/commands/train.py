"""Trains, evaluates and reports by a recipe. The same command resumes a stopped run.

Exit status: 0 if the run is complete, 1 after an error message, 130 and 143 if it was stopped by
Ctrl-C and SIGTERM. In the latter case a message names the step from which the same command resumes.
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
    preemption.install()  # again, because JAX replaces the SIGTERM handler when hosts join
    gc.freeze()  # the garbage collector skips imported objects, which makes tracing faster
    try:
        workdir = local_folder(options.workdir)
        selected = [
            trackers.load(name, options.config, workdir)
            for name in options.tracker
            if hosts.is_primary()
        ]
        experiment.run(options.config, workdir, stage=options.stage, trackers=selected)
    except preemption.Preempted as stop:
        stop.exit()


def _parser() -> Parser:
    parser = Parser("train", __doc__)
    parser.add_config("configs/busi.py or configs/busi.py:cpu")
    add = parser.add_argument
    add("--workdir", required=True, metavar="FOLDER",
        help="folder for all results; resumes the run that is in it")  # fmt: skip
    add("--stage", choices=experiment.STAGES, default="all",
        help="stage to run; evaluate computes predictions and results again")  # fmt: skip
    add("--tracker", action="append", default=[], metavar="MODULE:FUNCTION",
        help="function that returns a tracker, which receives the metrics of every epoch; may be "
        "repeated")  # fmt: skip
    add("--deterministic", action="store_true",
        help="on a GPU, make results bit-identical in every run, at some cost; on a CPU they "
        "always are")  # fmt: skip
    group = parser.add_argument_group(
        "several hosts", "Detected automatically on TPU pods, SLURM and Open MPI."
    )
    group.add_argument("--coordinator", metavar="ADDRESS:PORT", help="address of process 0")
    group.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process_id", type=int, metavar="I", help="index of this process, from 0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
