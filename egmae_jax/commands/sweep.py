"""Runs the variants of a recipe and compares them.

Each variant is a run in the folder OUT/<variant>, as `egmae train` would create it. The same
command resumes a stopped sweep. At the end a variant is chosen on the validation images and
compared with the baseline on the test images, in a printed table and in summary.json, summary.csv,
summary.png and summary.html in the folder OUT.

Exit status: 0 if all variants are complete, 1 if a variant failed, 130 and 143 if the sweep was
stopped by Ctrl-C and SIGTERM.
"""

import logging
import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser, local_path
from egmae_jax.core import console, preemption
from egmae_jax.run.workdir import lock
from egmae_jax.sweep import display, run, summary, variants

logger = logging.getLogger("egmae_jax.sweep")  # with python -m, __name__ is __main__


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `egmae sweep`; returns the exit status."""
    options = _parser().read(arguments)
    console.set_up_logging()
    preemption.install()
    try:
        out = options.out
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
    logger.info(
        "Written to %s: summary.json, summary.csv and, if a variant is complete, summary.png and "
        "summary.html",
        out,
    )
    return 1 if any(row["status"] == "failed" for row in result["variants"]) else 0


def _parser() -> Parser:
    parser = Parser("sweep", __doc__)
    parser.add_config("configs/sweeps/corruption.py:busi,cpu")
    parser.add_argument("--out", required=True, type=local_path, metavar="FOLDER",
        help="folder for all runs; resumes the sweep that is in it")  # fmt: skip
    parser.add_argument("--summary_only", action="store_true",
        help="run nothing, and compare the complete variants")  # fmt: skip
    parser.add_argument("--all_on_test", action="store_true",
        help="compare all variants on the test images, not only the chosen one and the "
        "baseline; for ablations, where no variant is chosen by the result")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
