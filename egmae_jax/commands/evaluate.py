"""Evaluates a finished run on labelled images from elsewhere (external validation).

The networks, the fusion and the calibration are those of the run; nothing is fitted. The images are
read, resized and predicted as in the run's evaluation, by every branch, every round and the
ensemble. --images is a folder with one subfolder per class, or a table manifest.csv with the
columns path, label and, optionally, group (patient, lesion).

Images that are identical to, or near-duplicates of, the run's training and validation images are
left out and named, with all images of their groups. Classes are compared by their exact names;
--map names those that the run calls otherwise.

Writes to --out: results.json, laid out like that of a run; predictions.csv, with a row per round
and image and uncalibrated probabilities; and report.html.

Exit status: 0 if all images were read, 1 after an error message if nothing was written, 3 if some
files could not be read: these are listed with the reason and left out.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser, local_path, positive
from egmae_jax.commands.predict import UNREADABLE
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors
from egmae_jax.deploy import external
from egmae_jax.report import write_external_report


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae evaluate`."""
    parser = Parser("evaluate", __doc__)
    parser.add_import()
    add = parser.add_argument
    add("--workdir", required=True, type=local_path, metavar="FOLDER", help="folder of the run")
    add("--images", required=True, type=local_path, metavar="FOLDER|manifest.csv",
        help="labelled images")  # fmt: skip
    add("--out", required=True, type=local_path, metavar="FOLDER",
        help="folder for results.json, predictions.csv and report.html")  # fmt: skip
    add("--map", action="append", default=[], dest="renamed", metavar="OTHER=OURS",
        help="name of a class of the images, and of the class of the run that it is; may be "
        "repeated")  # fmt: skip
    add("--group_pattern", type=_pattern, default="", metavar="REGEX",
        help="regular expression with a (group) that extracts the patient from a file's name, as "
        "data.group_pattern does")  # fmt: skip
    add("--data_dir", type=local_path, metavar="FOLDER",
        help="folder of the run's own images, if they were moved after training")  # fmt: skip
    add("--batch", type=positive, default=64, metavar="N", help="batch size")
    options = vars(parser.read(arguments))
    console.set_up_logging()
    workdir, out = options["workdir"], options["out"]
    with explain_storage_errors(workdir, options["images"], out):
        results, predictions = external.evaluate(**options)
        write_external_report(workdir, results, predictions, out / "report.html")
    console.terminal.print(f"Written to {out}", soft_wrap=True)
    if unreadable := results["dataset"]["skipped"]:
        title = "These images cannot be read and were left out:"
        console.fail("\n  ".join([title, *unreadable]), UNREADABLE)


def _pattern(text: str) -> str:
    """Parses a regular expression with a capture group."""
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise argparse.ArgumentTypeError(f"it is {text!r}: {error}") from None
    if text and not groups:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must contain a (group)")
    return text


if __name__ == "__main__":
    sys.exit(main())
