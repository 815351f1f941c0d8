"""Draws and scores the regions of test images that speak for a class (Grad-CAM).

Writes, into --out: overlays/ with a PNG for each of --images test images, spread over the classes;
sheet_<i>.png, the same images eight a page; gradcam.json with every figure. Where the data set has
masks of the lesions, all test images are scored, whatever --images says.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.commands.arguments import Parser
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_writable
from egmae_jax.explain import cam_scores, cam_study
from egmae_jax.run.saved_run import RunError


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, 0."""
    parser = Parser("explain", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="FOLDER", help="of the run")
    add("--out", required=True, type=Path, metavar="FOLDER", help="for pictures and gradcam.json")
    add("--branch", metavar="NAME", help="of the run; without it mae, or the first")
    add("--round", default="0", metavar="I", help="of the run; 'all' pools the scores of all")
    add("--layer", metavar="ADDRESS",
        help="such as stages_2/blocks_8; if not given, the deepest block with a grid of at least "
        "7 x 7 cells")  # fmt: skip
    add("--images", type=int, default=24, metavar="N", dest="max_images", help="with pictures")
    add("--batch", type=int, default=16, metavar="N", help="images at a time")
    add("--tolerance", type=float, default=0, metavar="X", help="of the pointing game, in pixels")
    add("--data_dir", type=Path, metavar="FOLDER", help="of the images, if they were moved")
    options = vars(parser.read(arguments))
    console.set_up_logging()
    workdir, out, which = (options.pop(name) for name in ("workdir", "out", "round"))
    if which != "all" and not which.isdecimal():
        raise RunError(f"--round is {which!r}; it must be a round's number or 'all'.")
    require_writable(out, f"--out={out}")
    with explain_storage_errors(workdir, out):
        if which == "all":
            content = cam_study.explain_rounds(workdir, out, **options)
        else:
            content = cam_study.explain_run(workdir, out, round_index=int(which), **options)
    cam_scores.show(content, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
