"""What a step changes, and which of the parameters train.

A parameter that does not train has no gradient and no optimizer state and stays as it was.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import struct, traverse_util
from jax.sharding import Mesh

from egmae_jax.core import sharding

PyTree = Any
EVERYTHING = ("",)  # prefixes of all paths


@struct.dataclass
class TrainState:
    """Everything that a step changes."""

    step: jax.Array  # int32, steps done
    params: PyTree  # all parameters of the network
    batch_stats: PyTree  # running statistics of batch norms; {} for a network without any
    opt_state: PyTree  # optimizer state of the parameters that train

    @classmethod
    def create(
        cls,
        variables: PyTree,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        prefixes: tuple[str, ...] = EVERYTHING,
    ) -> "TrainState":
        """Places the state before the first step on the devices.

        Args:
            variables: {"params": ..., "batch_stats": ...}, the latter if the network has any.
            optimizer: optimizer of the parameters that train.
            mesh: the devices.
            prefixes: path prefixes of the parameters that train, such as 'head/'.
        """
        step = sharding.replicate(np.int32(0), mesh)
        variables = sharding.place(variables, sharding.state_shardings(variables, mesh))
        params = variables["params"]
        # Jitted, it is one program instead of one for every shape. It runs once.
        trained = partition(params, prefixes)[0]
        shapes = jax.eval_shape(optimizer.init, trained)
        init = jax.jit(
            optimizer.init,
            out_shardings=sharding.state_shardings(shapes, mesh),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        return cls(step, params, variables.get("batch_stats", {}), init(trained))

    @property
    def variables(self) -> PyTree:
        """What `model.apply` takes: {"params": ...}, and "batch_stats" if there are any."""
        statistics = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **statistics}

    def update(
        self,
        optimizer: optax.GradientTransformation,
        gradients: PyTree,
        batch_stats: PyTree | None = None,
    ) -> "TrainState":
        """The state after one step of the optimizer.

        Args:
            optimizer: optimizer of the parameters that train.
            gradients: gradients of those parameters.
            batch_stats: new running statistics; None keeps them.
        """
        trained = restrict(self.params, gradients)
        updates, opt_state = optimizer.update(gradients, self.opt_state, trained)
        params = merge(self.params, optax.apply_updates(trained, updates))
        statistics = self.batch_stats if batch_stats is None else batch_stats
        return TrainState(self.step + 1, params, statistics, opt_state)


def partition(params: PyTree, prefixes: tuple[str, ...] = EVERYTHING) -> tuple[PyTree, PyTree]:
    """The parameters below some path prefixes, such as 'head/', and all others."""
    return (
        _filter(params, lambda path: path.startswith(prefixes)),
        _filter(params, lambda path: not path.startswith(prefixes)),
    )


def merge(*trees: PyTree) -> PyTree:
    """One tree with the leaves of all; of leaves with the same path the last one's."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat |= traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def restrict(params: PyTree, like: PyTree) -> PyTree:
    """The leaves of `params` whose paths the tree `like` has, too."""
    paths = traverse_util.flatten_dict(like, sep="/")
    return _filter(params, paths.__contains__)


def count_parameters(params: PyTree) -> int:
    """How many numbers the leaves hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _filter(params: PyTree, keep: Callable[[str], bool]) -> PyTree:
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({p: x for p, x in flat.items() if keep(p)}, sep="/")
