"""Checks a data set for problems before a run.

Prints and saves what matters for splits and for the interpretation of results: counts, copies
within and across classes and official parts, groups, image sizes and modes, whether something other
than the disease distinguishes the classes, advice for each finding, and contact sheets of each
class and of all near-duplicates.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.commands.arguments import Parser
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_writable
from egmae_jax.data import audit
from egmae_jax.data.prepare import prepare
from egmae_jax.run import rules


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae audit`."""
    parser = Parser("audit", __doc__)
    parser.add_config("configs/busi.py")
    parser.add_argument("--out", type=Path, metavar="FOLDER",
        help="folder of audit.json and contact sheets (default: runs/audit/NAME)")  # fmt: skip
    options = parser.read(arguments)
    console.set_up_logging()
    data = options.config.data
    folder = options.out or Path("runs") / "audit" / data.name
    rules.check(options.config, num_devices=1, section="data.")
    require_writable(folder, f"--out={folder}")
    with explain_storage_errors(folder):
        prepared = prepare(
            data.name,
            Path(data.dir).expanduser(),
            Path(data.cache_dir).expanduser() / "datasets",
            on_error="skip",
            near_duplicate_threshold=data.near_duplicate_threshold,
            classes=data.classes,
            group_pattern=data.group_pattern,
            intensity_range=data.intensity_range,
        )
        audit.show(audit.save(prepared, folder), folder)


if __name__ == "__main__":
    sys.exit(main())
