"""A page to try a finished run: drop an image, see what the networks say and what raises it.

The page is for this machine alone: it listens on 127.0.0.1, asks no other host for anything, and
refuses what pages of other sites send it. An image stays in memory, and no longer than its page is
open. Needs NiceGUI: pip install -e '.[demo]'.

Exit status: 0; 1 where the page cannot be shown, and a sentence says why.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.commands.arguments import Parser, round_index
from egmae_jax.core import console
from egmae_jax.deploy.demo import launch


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = Parser("demo", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="W", help="of the run")
    add("--round", type=round_index, default="0", metavar="I", dest="round_index",
        help="of the run; 'all' averages the probabilities of all, and Grad-CAM is of the "
        "first")  # fmt: skip
    add("--branch", metavar="NAME",
        help="whose Grad-CAM is shown first; mae, or without it the first")  # fmt: skip
    add("--port", type=int, default=8080, metavar="N", help="of the page; 0: any free one")
    add("--max_megabytes", type=int, default=25, metavar="N",
        help="the most that a file may have")  # fmt: skip
    add("--open", action=argparse.BooleanOptionalAction, default=True, dest="browse",
        help="opens the page in the browser")  # fmt: skip
    options = vars(parser.read(arguments))
    console.set_up_logging()
    with contextlib.suppress(KeyboardInterrupt):
        launch.serve(**options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
