"""Checks a data set for problems before a run.

Prints and saves what matters for splits and for the interpretation of results: counts, copies
within and across classes and official parts, groups, image sizes and modes, whether something other
than the disease distinguishes the classes, advice for each finding, and contact sheets of each
class and of all near-duplicates.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.commands.arguments import Parser, local_path
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_writable
from egmae_jax.data import audit
from egmae_jax.run import images, rules


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae audit`."""
    parser = Parser("audit", __doc__)
    parser.add_config("configs/busi.py")
    parser.add_argument("--out", type=local_path, metavar="FOLDER",
        help="folder of audit.json and contact sheets (default: runs/audit/NAME)")  # fmt: skip
    options = parser.read(arguments)
    console.set_up_logging()
    config = options.config
    folder = options.out or Path("runs") / "audit" / config.data.name
    rules.check_data(config)
    require_writable(folder, f"--out={folder}")
    with explain_storage_errors(folder):
        listing = images.list_images(config)
        prepared = images.prepare_images(config, listing, on_error="skip")
        audit.show(audit.save(prepared, folder), folder)


if __name__ == "__main__":
    sys.exit(main())
