"""Classifies new images with a finished run.

The table --out has one row per image: its file, the class that the ensemble predicts, and the
probability of each class by the ensemble and by each branch, in columns such as `ensemble:benign`.
Folders are searched recursively, in natural order ('2.png' before '10.png'). Relative paths in the
column `file` are relative to the folder in which the command ran. A path that a spreadsheet would
take for a formula, because it starts with = + - or @, is written as ./=..., which is the same file;
class names are written unchanged.

The folder --gradcam gets one overlay per image, which shows the regions that raise the score of the
predicted class in a branch's network. The overlay is no finer than the grid of the layer, which is
named in the log and in the Description of each PNG. Overlays are arranged in subfolders like the
images below their common parent folder.

Exit status: 0 if all images were classified, 1 after an error message if nothing was written, 3 if
some files could not be read: these are listed with the reason, and the others are in the table.
"""

import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser, local_path, round_index
from egmae_jax.core import console
from egmae_jax.deploy import predictions

UNREADABLE = 3  # exit status


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae predict`."""
    parser = Parser("predict", __doc__)
    parser.add_import()
    add = parser.add_argument
    add("--workdir", required=True, type=local_path, metavar="FOLDER", help="folder of the run")
    add("--images", required=True, type=local_path, nargs="+", action="extend",
        metavar="FOLDER|FILE",
        help="image files, and folders that are searched recursively")  # fmt: skip
    add("--out", required=True, type=local_path, metavar="FILE", help="CSV file to write")
    add("--round", type=round_index, metavar="I", dest="round_index",
        help="round of the run; 'all' averages the probabilities of all rounds (default: all with "
        "folds, else 0)")  # fmt: skip
    add("--uncalibrated", action="store_false", dest="calibrated",
        help="write the probabilities of the networks without calibration")  # fmt: skip
    add("--gradcam", type=local_path, metavar="FOLDER", dest="pictures",
        help="folder for Grad-CAM overlays of the predicted classes")  # fmt: skip
    add("--branch", metavar="NAME",
        help="branch that --gradcam explains (default: mae if the run has it, else the first "
        "branch)")  # fmt: skip
    add("--batch", type=int, default=64, metavar="N", help="batch size")
    options = vars(parser.read(arguments))
    console.set_up_logging()
    if unreadable := predictions.predict_files(**options):
        title = "These images cannot be read and are not in the table:"
        console.fail(predictions.list_unreadable(title, unreadable), UNREADABLE)


if __name__ == "__main__":
    sys.exit(main())
