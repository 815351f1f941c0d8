"""SIGTERM, by which schedulers and clouds take a machine back: save, then stop.

The signal ends whatever is under way as Ctrl-C does, since every file is whole or not there. Only
while training is a checkpoint saved first; the step under way is finished for that.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_STATUS = 143  # 128 + SIGTERM, what a shell says of a program that it ends


class Preempted(BaseException):
    """The run was asked to stop; the same command goes on. No handler of errors may catch it."""


_requested = False
_deferred = False


def install() -> None:
    """Makes SIGTERM raise Preempted in the main thread, or wait where it is `deferred`."""
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = True
    if not _deferred:
        raise Preempted


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Lets the signal wait; yields a function that says whether it came.

    At the end of the block a signal that came and was not heeded raises Preempted.
    """
    global _deferred
    _deferred = True
    try:
        yield lambda: _requested
    finally:
        _deferred = False
    if _requested:
        raise Preempted
