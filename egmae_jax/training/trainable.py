"""Which parameters train. What does not has no gradient, no optimizer state and stays as it was.

Parameters are one nested dict, in which batch norms keep their running statistics beside scale and
bias, as PyTorch's state dicts do; a step moves those, but no optimizer does.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import traverse_util

PyTree = Any
STATISTICS = ("mean", "var")  # leaves of batch norms that are no parameters
EVERYTHING = ("",)  # prefixes of all paths


def split(params: PyTree, prefixes: tuple[str, ...] = EVERYTHING) -> tuple[PyTree, PyTree]:
    """The parameters below some path prefixes, such as 'head/', and all other leaves.

    Statistics are always among the others.
    """

    def trains(path: str) -> bool:
        return path.startswith(prefixes) and path.rsplit("/", 1)[-1] not in STATISTICS

    return _filter(params, trains), _filter(params, lambda path: not trains(path))


def merge(*trees: PyTree) -> PyTree:
    """One tree with the leaves of all; of leaves with the same path the last one's."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat |= traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def restrict(params: PyTree, like: PyTree) -> PyTree:
    """The leaves of `params` that the tree `like` has."""
    paths = traverse_util.flatten_dict(like, sep="/")
    return _filter(params, paths.__contains__)


def count(params: PyTree) -> int:
    """How many numbers the leaves hold; statistics are no parameters and do not count."""
    return sum(leaf.size for leaf in jax.tree.leaves(split(params)[0]))


def _filter(params: PyTree, keep: Callable[[str], bool]) -> PyTree:
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({p: x for p, x in flat.items() if keep(p)}, sep="/")
