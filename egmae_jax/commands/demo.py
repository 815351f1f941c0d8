"""Opens a page to try a finished run: drop an image, see its class and what raises the score.

The page is for this machine alone: it listens on 127.0.0.1, asks no other host for anything, and
refuses what pages of other sites send it. An image stays in memory, and no longer than its page is
open. Needs NiceGUI: pip install -e '.[demo]'.

Exit status: 0; 1 where the page cannot be shown, and a sentence says why.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.commands.arguments import Parser, round_index
from egmae_jax.core import console
from egmae_jax.deploy.demo import launch


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae demo`."""
    parser = Parser("demo", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="W", help="folder of the run")
    add("--round", type=round_index, default="0", metavar="I", dest="round_index",
        help="round of the run; 'all' averages the probabilities of all rounds, and Grad-CAM is "
        "of the first")  # fmt: skip
    add("--branch", metavar="NAME",
        help="branch whose Grad-CAM is shown first; mae if the run has it, else the "
        "first")  # fmt: skip
    add("--port", type=int, default=8080, metavar="N", help="port of the page; 0: any free one")
    add("--no-open", action="store_false", dest="browse",
        help="does not open the page in the browser")  # fmt: skip
    options = vars(parser.read(arguments))
    console.set_up_logging()
    with contextlib.suppress(KeyboardInterrupt):
        launch.serve(**options)


if __name__ == "__main__":
    sys.exit(main())
