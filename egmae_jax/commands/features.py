"""Writes the features of images, by a network of a run: the last feature map's mean over pixels.

The network is a fine-tuned branch, or with --pretrained, and for a folder of `egmae pretrain`, the
encoder as pre-training left it. Images are resized and cropped as in the run's evaluation.

    --out=FILE.npz    arrays: files, str [N], and features, float32 [N, D]
    --out=FILE.csv    columns file, feature_0, feature_1 ...

Folders are searched recursively, in natural order ('2.png' before '10.png'). Relative paths are
relative to the folder in which the command ran.

Exit status: 0 if all images have features, 1 after an error message if nothing was written, 3 if
some files could not be read: these are listed with the reason, and the others are in the file.
"""

import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser, local_path
from egmae_jax.commands.predict import UNREADABLE
from egmae_jax.core import console
from egmae_jax.deploy import features
from egmae_jax.deploy.predictions import list_unreadable


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae features`."""
    parser = Parser("features", __doc__)
    parser.add_import()
    add = parser.add_argument
    add("--workdir", required=True, type=local_path, metavar="FOLDER", help="folder of the run")
    add("--images", required=True, type=local_path, nargs="+", action="extend",
        metavar="FOLDER|FILE",
        help="image files, and folders that are searched recursively")  # fmt: skip
    add("--out", required=True, type=local_path, metavar="FILE", help=".npz or .csv file to write")
    add("--branch", metavar="NAME",
        help="branch whose network is used (default: mae if the run has it, else the first "
        "branch)")  # fmt: skip
    add("--pretrained", action="store_true",
        help="use the encoder as pre-training left it, before fine-tuning")  # fmt: skip
    add("--round", type=int, default=0, metavar="I", dest="round_index",
        help="round of the run")  # fmt: skip
    add("--batch", type=int, default=64, metavar="N", help="batch size")
    options = vars(parser.read(arguments))
    console.set_up_logging()
    if unreadable := features.write_features(**options):
        title = "These images cannot be read and have no features:"
        console.fail(list_unreadable(title, unreadable), UNREADABLE)


if __name__ == "__main__":
    sys.exit(main())
