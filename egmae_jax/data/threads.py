"""Parallel work on images with threads, which suffice since decoders release Python's lock."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import grain

T = TypeVar("T")


def read_ahead(function: Callable[[int], T], start: int, stop: int) -> Iterator[T]:
    """Yields function(start), ..., function(stop - 1) in order, computed ahead by threads.

    One thread per available core works up to 16 results ahead.

    Args:
        function: thread-safe function that must not return None, which Grain skips.
        start: first argument of the function.
        stop: end of the arguments, exclusive.
    """
    # A job may use fewer cores than the machine has.
    on_linux = sys.platform == "linux"
    cores = len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=16)
    dataset = grain.MapDataset.source(range(start, stop)).map(function)
    yield from dataset.to_iter_dataset(options)
