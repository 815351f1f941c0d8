"""Other libraries' log lines, where an error of ours says the same better."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Leaves log lines below `level` of the logger called `name` out within the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
