"""A page to try a finished run: drop an image, see what the networks say and what raises it.

python -m egmae_jax.demo --workdir=W [--round=I|all] [--branch=NAME] [--port=8080]
    [--max_megabytes=25] [--open|--no-open]

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

from egmae_jax.core import console
from egmae_jax.deploy.demo import launch


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m egmae_jax.demo",
        description="Opens a local page where one drops an image and sees what a finished run says "
        "of it, the regions that raise it, and the entropy of its patches.",
    )
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="W", help="of the run")
    add("--round", default="0", metavar="I", dest="which",
        help="of the run; 0 if not given; 'all' averages the probabilities of all, and Grad-CAM "
        "is of the first")  # fmt: skip
    add("--branch", metavar="NAME",
        help="whose Grad-CAM is shown first; mae, or without it the first")  # fmt: skip
    add("--port", type=int, default=8080, metavar="N", help="8080 if not given; 0: any free one")
    add("--max_megabytes", type=int, default=25, metavar="N",
        help="the most that a file may have; 25 if not given")  # fmt: skip
    add("--open", action=argparse.BooleanOptionalAction, default=True, dest="browse",
        help="opens the page in the browser")  # fmt: skip
    options = vars(parser.parse_args(arguments))
    console.set_up_logging()
    with contextlib.suppress(KeyboardInterrupt):
        which = options.pop("which")
        launch.serve(round_index=int(which) if which.isdecimal() else which, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
