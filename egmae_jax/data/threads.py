"""Work on images by as many threads as there are cores: decoders run outside Python's lock."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import cv2
import grain

T = TypeVar("T")
_lock = threading.Lock()
_users = 0  # of one thread of OpenCV's
_threads_before = 0  # that OpenCV had without them


def read_ahead(function: Callable[[int], T], start: int, stop: int) -> Iterator[T]:
    """function(start), ..., function(stop - 1) in order, up to sixteen computed ahead."""
    # Grain keeps the order whatever the number of threads, and leaves out what is None.
    options = grain.ReadOptions(num_threads=_cores(), prefetch_buffer_size=16)
    dataset = grain.MapDataset.source(range(start, stop)).map(function)
    with _one_thread_of_opencv():
        yield from dataset.to_iter_dataset(options)


@contextlib.contextmanager
def _one_thread_of_opencv() -> Iterator[None]:
    """Keeps OpenCV from starting threads of its own in each of ours; undone when none is left."""
    global _users, _threads_before
    with _lock:
        if not _users:
            _threads_before = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                cv2.setNumThreads(_threads_before)


def _cores() -> int:
    """Those that this process may use, which of a job are fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
