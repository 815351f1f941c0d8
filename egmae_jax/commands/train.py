"""Trains, evaluates and reports by a recipe. The same command resumes a stopped run.

Exit status: 0 if the run is complete, 1 after an error message, 130 and 143 if it was stopped by
Ctrl-C and SIGTERM. In the latter case a message names the step from which the same command resumes.
"""

import sys
from collections.abc import Sequence

from egmae_jax import experiment
from egmae_jax.commands.arguments import Parser, local_path
from egmae_jax.commands.startup import start_training
from egmae_jax.core import console, hosts, preemption
from egmae_jax.run import trackers


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae train`."""
    options = _parser().read(arguments)
    start_training(
        options.coordinator,
        options.num_processes,
        options.process_id,
        deterministic=options.deterministic,
    )
    try:
        selected = [
            trackers.load(name, options.config, options.workdir)
            for name in options.tracker
            if hosts.is_primary()
        ]
        experiment.run(options.config, options.workdir, stage=options.stage, trackers=selected)
    except preemption.Preempted as stop:
        stop.exit()


def _parser() -> Parser:
    parser = Parser("train", __doc__)
    parser.add_config("configs/busi.py or configs/busi.py:cpu")
    add = parser.add_argument
    add("--workdir", required=True, type=local_path, metavar="FOLDER",
        help="folder for all results; resumes the run that is in it")  # fmt: skip
    add("--stage", choices=experiment.STAGES, default="all",
        help="stage to run; evaluate computes predictions and results again")  # fmt: skip
    add("--tracker", action="append", default=[], metavar="NAME",
        help="receiver of the metrics of every epoch: wandb, mlflow or aim where installed, or "
        "module:function of your own; may be repeated")  # fmt: skip
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
