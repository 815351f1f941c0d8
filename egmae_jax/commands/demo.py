"""Opens a local web page that classifies an image with a finished run and explains the result.

The page is for this machine only: the server listens on 127.0.0.1, contacts no other host, and
refuses requests from pages of other sites. An image stays in memory, and only while its page is
open. Needs NiceGUI: pip install -e '.[demo]'.

Exit status: 0, or 1 after an error message if the page cannot be shown.
"""

import contextlib
import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser, local_path, round_index
from egmae_jax.core import console
from egmae_jax.deploy.demo import launch


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae demo`."""
    parser = Parser("demo", __doc__)
    parser.add_import()
    add = parser.add_argument
    add("--workdir", required=True, type=local_path, metavar="FOLDER", help="folder of the run")
    add("--round", type=round_index, metavar="I", dest="round_index",
        help="round of the run; 'all' averages the probabilities of all rounds, and Grad-CAM "
        "explains the first (default: all with folds, else 0)")  # fmt: skip
    add("--branch", metavar="NAME",
        help="branch whose Grad-CAM is shown first (default: mae if the run has it, else the "
        "first branch)")  # fmt: skip
    add("--port", type=int, default=8080, metavar="N",
        help="port to listen on; 0 chooses a free port")  # fmt: skip
    add("--no-open", action="store_false", dest="browse",
        help="do not open the page in the browser")  # fmt: skip
    options = vars(parser.read(arguments))
    console.set_up_logging()
    with contextlib.suppress(KeyboardInterrupt):
        launch.serve(**options)


if __name__ == "__main__":
    sys.exit(main())
