"""Bytes that are damaged, and what reading them may do."""

import contextlib
import tracemalloc

from hypothesis import strategies as st


def damaged(whole, max_bytes=4):
    """The bytes with a few others in some places, or cut, or with something behind them."""
    places = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255))
    changed = st.lists(places, min_size=1, max_size=max_bytes)
    cut = st.integers(0, len(whole) - 1)

    def change(edits):
        content = bytearray(whole)
        for place, value in edits:
            content[place] = value
        return bytes(content)

    return changed.map(change) | cut.map(lambda n: whole[:n]) | st.binary(max_size=64)


@contextlib.contextmanager
def either_right_or(error, file):
    """What the block does is right, or it raises `error`, which names the file."""
    try:
        yield
    except error as raised:
        assert str(file) in str(raised)  # noqa: PT017 (either outcome is right)


@contextlib.contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
