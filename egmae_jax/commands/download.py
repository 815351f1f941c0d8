"""Downloads a public data set, such as egmae download kvasir data/kvasir.

Zip archives are unpacked in the same folder.
"""

import logging
import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser, local_path
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_writable
from egmae_jax.data import datasets, download

logger = logging.getLogger("egmae_jax.data.download")  # with python -m, __name__ is __main__


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae download`."""
    parser = Parser("download", __doc__)
    available = [n for n in datasets.names() if datasets.get(n).archives]
    parser.add_argument("name", choices=available, help="name of the data set")
    parser.add_argument("folder", type=local_path, help="folder for the files of the data set")
    options = parser.read(arguments)
    console.set_up_logging()
    require_writable(options.folder, str(options.folder))
    with explain_storage_errors(options.folder):
        download.download(datasets.get(options.name).archives, options.folder)
    logger.info("The download is complete. To use it, set --config.data.dir=%s", options.folder)


if __name__ == "__main__":
    sys.exit(main())
