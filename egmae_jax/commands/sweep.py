"""Runs a sweep: python -m egmae_jax.sweep --config=configs/sweeps/epochs.py:busi --out=FOLDER

Every variant is a run of its own in FOLDER/<variant>, as main.py would make it. The same command
goes on with what is not complete. At the end one is chosen on validation images and shown on test
images beside the baseline: a table, and summary.json, summary.csv and summary.png in FOLDER;
--summary_only makes these of what there is. --all_on_test shows all variants on test images, as an
ablation needs: nothing may be chosen from that.

Exit status: 0 all is complete, 1 a variant failed, 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

import logging
import sys

from absl import app, flags
from ml_collections import config_flags

from egmae_jax.core import console, preemption
from egmae_jax.run import config as configs
from egmae_jax.run.workdir import local_folder, lock
from egmae_jax.sweep import run, summary, variants

logger = logging.getLogger("egmae_jax.sweep")


def define_flags() -> None:
    """Of the command."""
    config_flags.DEFINE_config_file(
        "config", help_string="Sweep, e.g. configs/sweeps/corruption.py:busi,cpu."
    )
    flags.DEFINE_string("out", None, "Folder for all runs; goes on with what is in it.")
    flags.DEFINE_bool("summary_only", False, "Runs nothing, compares what there is.")
    flags.DEFINE_bool(
        "all_on_test",
        False,
        "Shows all variants on test images, not the chosen and the baseline alone: for an "
        "ablation, nothing may be chosen from it.",
    )
    flags.mark_flags_as_required(["config", "out"])


@console.user_errors()
def main(argv: list[str]) -> None:
    """Command line."""
    console.set_up_logging()
    preemption.install()
    if argv[1:]:
        console.fail(f"What is {' '.join(argv[1:])!r}? Flags begin with --, such as --out=FOLDER.")
    config = flags.FLAGS.config
    try:
        out = local_folder(flags.FLAGS.out, flag="--out")
        given = config_flags.get_override_values(flags.FLAGS["config"])
        sweep = variants.read(config, given)
        run.check(sweep, out)
        with lock(out, flag="--out"):
            failures = {} if flags.FLAGS.summary_only else run.run(sweep, out)
            resamples = config.evaluation.bootstrap_resamples
            found = summary.summarize(
                sweep, out, failures, resamples=resamples, all_on_test=flags.FLAGS.all_on_test
            )
            summary.write(found, out)
    except preemption.Preempted as stop:
        stop.exit()
    summary.show(found)
    logger.info("Written to %s: summary.json, summary.csv and, of what is complete, .png", out)
    sys.exit(1 if any(row["status"] == "failed" for row in found["variants"]) else 0)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=configs.parse_flags)
