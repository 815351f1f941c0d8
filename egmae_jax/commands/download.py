"""Fetches a data set that may be fetched: egmae download kvasir data/kvasir.

Zip archives are unpacked beside.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.commands.arguments import Parser
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_writable
from egmae_jax.data import datasets, download

logger = logging.getLogger("egmae_jax.data.download")  # __name__ is __main__ by -m


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae download`."""
    parser = Parser("download", __doc__)
    fetchable = [n for n in datasets.names() if datasets.get(n).archives]
    parser.add_argument("name", choices=fetchable, help="name of the data set")
    parser.add_argument("folder", type=Path, help="folder for its files")
    options = parser.read(arguments)
    console.set_up_logging()
    require_writable(options.folder, str(options.folder))
    with explain_storage_errors(options.folder):
        download.download(datasets.get(options.name).archives, options.folder)
    logger.info("Done; give --config.data.dir=%s", options.folder)


if __name__ == "__main__":
    sys.exit(main())
