"""Suppresses log lines of other libraries that only repeat an error of this package."""

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Drops the log lines of one logger below a level, within the block.

    Args:
        name: name of the logger.
        level: lowest level that is still logged.
    """
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


class _ThreadFilter(logging.Filter):
    """Drops the log lines of threads that are within `silence`."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self._local, "is_silent", False)

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Drops the log lines of the current thread within the block."""
        self._local.is_silent = True
        try:
            yield
        finally:
            self._local.is_silent = False


@functools.cache
def _install_filter(logger: str) -> _ThreadFilter:
    thread_filter = _ThreadFilter()
    logging.getLogger(logger).addFilter(thread_filter)
    return thread_filter


@contextlib.contextmanager
def silenced(*loggers: str) -> Iterator[None]:
    """Drops the log lines of some loggers, only in this thread and within the block.

    Readers of image files use it, because their error names the file and the problem. Other threads
    and the levels of the loggers are not affected.

    Args:
        loggers: names of the loggers.
    """
    with contextlib.ExitStack() as stack:
        for logger in loggers:
            stack.enter_context(_install_filter(logger).silence())
        yield
