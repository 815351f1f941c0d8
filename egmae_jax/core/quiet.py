"""Other libraries' log lines, where an error of ours says the same better."""

import contextlib
import functools
import logging
import threading
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


class _ThisThread(logging.Filter):
    """Drops what is logged in a thread that reads a file of ours."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self._local, "reading", False)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        self._local.reading = True
        try:
            yield
        finally:
            self._local.reading = False


@functools.cache
def _filter_of(logger: str) -> _ThisThread:
    made = _ThisThread()
    logging.getLogger(logger).addFilter(made)
    return made


@contextlib.contextmanager
def silenced(*loggers: str) -> Iterator[None]:
    """Keeps libraries from logging what they find in a file, in this thread and block only.

    The error that is raised says it once, with the file's name. The loggers themselves, their
    levels and what other threads log stay as they are.

    Args:
        loggers: names of the libraries' loggers.
    """
    with contextlib.ExitStack() as stack:
        for logger in loggers:
            stack.enter_context(_filter_of(logger).reading())
        yield
