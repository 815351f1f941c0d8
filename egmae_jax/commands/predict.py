"""Classifies new images by a finished run.

--out has a row an image: its file, the class that the ensemble predicts, and the probability of
every class by the ensemble and by each branch, in columns such as `ensemble:benign`. Folders are
searched to the bottom, in natural order ('2.png' before '10.png'); `file` is a path that opens from
where the command ran. A path that a spreadsheet would take for a formula,
beginning with = + - or @, is written as ./=..., which is the same file; names of classes, which are
the run's own, are written as they are.

--gradcam gets a picture an image: the regions that raise the score of the predicted class in the
network of a branch, no finer than the grid of the layer that is named in the log and in each
picture's Description. They lie as the images do below the folder that all images share.

Exit status: 0; 1 where nothing was written, and a sentence says why; 3 where some files could not
be read: these are listed with the reason, and the rest is written.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.commands.arguments import Parser, round_index
from egmae_jax.core import console
from egmae_jax.deploy import predictions

UNREADABLE = 3  # exit status


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae predict`."""
    parser = Parser("predict", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="W", help="folder of the run")
    add("--images", required=True, type=Path, nargs="+", action="extend", metavar="DIR|FILE",
        help="images, and folders that are searched for images")  # fmt: skip
    add("--out", required=True, type=Path, metavar="FILE", help="the table to write, CSV")
    add("--round", type=round_index, default="0", metavar="I", dest="round_index",
        help="round of the run; 'all' averages the probabilities of all rounds")  # fmt: skip
    add("--uncalibrated", action="store_false", dest="calibrated",
        help="probabilities as the networks give them, not scaled by the temperatures")  # fmt: skip
    add("--gradcam", type=Path, metavar="DIR", dest="pictures",
        help="folder for pictures of what raises the predicted class's score")  # fmt: skip
    add("--branch", metavar="NAME",
        help="branch that --gradcam explains; mae if the run has it, else the first")  # fmt: skip
    add("--batch", type=int, default=64, metavar="N", help="images at a time")
    options = vars(parser.read(arguments))
    console.set_up_logging()
    if unreadable := predictions.predict_files(**options):
        title = "These images cannot be read and are left out:"
        console.fail(predictions.list_unreadable(title, unreadable), UNREADABLE)


if __name__ == "__main__":
    sys.exit(main())
