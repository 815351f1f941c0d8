"""Work on images by as many threads as there are cores: decoders run outside Python's lock."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import grain

T = TypeVar("T")


def read_ahead(function: Callable[[int], T], start: int, stop: int) -> Iterator[T]:
    """function(start), ..., function(stop - 1) in order, up to sixteen computed ahead."""
    # Grain keeps the order whatever the number of threads, and leaves out what is None.
    options = grain.ReadOptions(num_threads=_cores(), prefetch_buffer_size=16)
    dataset = grain.MapDataset.source(range(start, stop)).map(function)
    return iter(dataset.to_iter_dataset(options))


def _cores() -> int:
    """Those that this process may use, which of a job are fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
