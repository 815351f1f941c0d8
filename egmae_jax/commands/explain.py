"""Draws Grad-CAM of test images, and scores it with lesion masks.

Writes to --out: overlays/ with a PNG of each of --images test images, spread over the classes;
sheet_<i>.png, contact sheets with eight of these images each; gradcam.json with all scores. If the
data set has lesion masks, all test images are scored, regardless of --images.
"""

import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser, local_path, round_index
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_writable
from egmae_jax.explain import cam_scores, cam_study


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae explain`."""
    parser = Parser("explain", __doc__)
    parser.add_import()
    add = parser.add_argument
    add("--workdir", required=True, type=local_path, metavar="FOLDER", help="folder of the run")
    add("--out", required=True, type=local_path, metavar="FOLDER",
        help="folder for the overlays and gradcam.json")  # fmt: skip
    add("--branch", metavar="NAME",
        help="branch to explain (default: mae if the run has it, else the first "
        "branch)")  # fmt: skip
    add("--round", type=round_index, default="0", metavar="I",
        help="round of the run; 'all' pools the scores of all rounds")  # fmt: skip
    add("--layer", metavar="ADDRESS",
        help="layer that Grad-CAM uses, such as stages_2/blocks_8 (default: the deepest block "
        "with a grid of at least 7 x 7 cells)")  # fmt: skip
    add("--images", type=int, default=24, metavar="N", dest="max_images",
        help="number of test images to draw")  # fmt: skip
    add("--data_dir", type=local_path, metavar="FOLDER",
        help="folder of the images, if they were moved after training")  # fmt: skip
    options = vars(parser.read(arguments))
    console.set_up_logging()
    workdir, out, choice = (options.pop(name) for name in ("workdir", "out", "round"))
    require_writable(out, f"--out={out}")
    with explain_storage_errors(workdir, out):
        index = None if choice == "all" else choice
        content = cam_study.explain_run(workdir, out, round_index=index, **options)
    cam_scores.show(content, out)


if __name__ == "__main__":
    sys.exit(main())
