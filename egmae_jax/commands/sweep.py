"""Runs the variants of a recipe and compares them.

Every variant is a run of its own in FOLDER/<variant>, as `egmae train` would make it. The same
command goes on with what is not complete. At the end one is chosen on validation images and shown
on test images beside the baseline: a table, and summary.json, summary.csv and summary.png in
FOLDER.

Exit status: 0 all is complete, 1 a variant failed, 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

import logging
import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser
from egmae_jax.core import console, preemption
from egmae_jax.run.workdir import local_folder, lock
from egmae_jax.sweep import display, run, summary, variants

logger = logging.getLogger("egmae_jax.sweep")  # __name__ is __main__ by -m


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `egmae sweep`; returns the exit status."""
    options = _parser().read(arguments)
    console.set_up_logging()
    preemption.install()
    try:
        out = local_folder(options.out, flag="--out")
        sweep = variants.read(options.config, options.overrides)
        run.check(sweep, out)
        with lock(out, flag="--out"):
            failures = {} if options.summary_only else run.run(sweep, out)
            result = summary.summarize(
                sweep,
                out,
                failures,
                resamples=options.config.evaluation.bootstrap_resamples,
                all_on_test=options.all_on_test,
            )
            summary.write(result, out)
    except preemption.Preempted as stop:
        stop.exit()
    display.show(result)
    logger.info("Written to %s: summary.json, summary.csv and, of what is complete, .png", out)
    return 1 if any(row["status"] == "failed" for row in result["variants"]) else 0


def _parser() -> Parser:
    parser = Parser("sweep", __doc__)
    parser.add_config("configs/sweeps/corruption.py:busi,cpu")
    parser.add_argument("--out", required=True, metavar="FOLDER",
        help="folder for all runs; goes on with what is in it")  # fmt: skip
    parser.add_argument("--summary_only", action="store_true",
        help="runs nothing, compares what there is")  # fmt: skip
    parser.add_argument("--all_on_test", action="store_true",
        help="shows all variants on test images, not the chosen and the baseline alone: for an "
        "ablation, nothing may be chosen from it")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
