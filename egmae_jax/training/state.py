"""Training state, and the partition of the parameters into trainable and frozen ones.

Frozen parameters have neither gradients nor optimizer state and never change.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax.sharding import Mesh

from egmae_jax.core import sharding

PyTree = Any
EVERYTHING = ("",)  # path prefixes that match all parameters


@struct.dataclass
class TrainState:
    """Training state of a network."""

    step: jax.Array  # int32, number of steps done
    params: PyTree  # all parameters of the network
    batch_stats: PyTree  # running statistics of batch norms; {} for a network without them
    opt_state: PyTree  # optimizer state of the trainable parameters
    # Exponential moving average of the trainable parameters, "params", and of the running
    # statistics, "batch_stats"; None if there is none.
    average: PyTree = None

    @classmethod
    def create(
        cls,
        variables: PyTree,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        prefixes: tuple[str, ...] = EVERYTHING,
        *,
        averages: bool = False,
    ) -> "TrainState":
        """Creates the state before the first step and places it on the devices.

        Args:
            variables: initial variables, {"params": ..., "batch_stats": ...}; "batch_stats" is
                missing for a network without batch norms.
            optimizer: optimizer of the trainable parameters.
            mesh: mesh of the devices.
            prefixes: path prefixes of the trainable parameters, such as 'head/'.
            averages: whether to keep an exponential moving average of the weights.
        """
        step = sharding.replicate(np.int32(0), mesh)
        variables = sharding.place(variables, sharding.state_shardings(variables, mesh))
        params = variables["params"]
        # jit makes one program instead of one per shape; it runs once, so it is not optimised.
        trained = partition(params, prefixes)[0]
        shapes = jax.eval_shape(optimizer.init, trained)
        init = jax.jit(
            optimizer.init,
            out_shardings=sharding.state_shardings(shapes, mesh),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        statistics, average = variables.get("batch_stats", {}), None
        if averages:  # a copy, because a step donates the state
            average = jax.tree.map(jnp.copy, {"params": trained, "batch_stats": statistics})
        return cls(step, params, statistics, init(trained), average)

    @property
    def variables(self) -> PyTree:
        """Variables for `model.apply`: {"params": ...}, and "batch_stats" if not empty."""
        statistics = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **statistics}

    @property
    def averaged_variables(self) -> PyTree | None:
        """Variables with the moving average in place of the weights; None if there is none."""
        if self.average is None:
            return None
        state = dataclasses.replace(
            self,
            params=merge(self.params, self.average["params"]),
            batch_stats=self.average["batch_stats"],
        )
        return state.variables

    def update(
        self,
        optimizer: optax.GradientTransformation,
        gradients: PyTree,
        batch_stats: PyTree | None = None,
        *,
        ema_decay: float = 0.0,
    ) -> "TrainState":
        """Returns the state after one step of the optimizer.

        Args:
            optimizer: optimizer of the trainable parameters.
            gradients: gradients of the trainable parameters.
            batch_stats: new running statistics; None keeps the old ones.
            ema_decay: decay of the moving average, if the state has one. In step n from 1 on, it is
                at most (1 + n) / (10 + n), so that the initial weights are soon forgotten.
        """
        with jax.named_scope("optimizer"):  # the name in profiles and in `benchmarks.aot`
            trained = restrict(self.params, gradients)
            updates, opt_state = optimizer.update(gradients, self.opt_state, trained)
            params = merge(self.params, optax.apply_updates(trained, updates))
            statistics = self.batch_stats if batch_stats is None else batch_stats
            average = self.average
            if average is not None:
                new = {"params": restrict(params, gradients), "batch_stats": statistics}
                decay = jnp.minimum(ema_decay, (2 + self.step) / (11 + self.step))
                average = optax.incremental_update(new, average, 1 - decay)
        return TrainState(self.step + 1, params, statistics, opt_state, average)


def partition(params: PyTree, prefixes: tuple[str, ...] = EVERYTHING) -> tuple[PyTree, PyTree]:
    """Returns the parameters whose paths begin with one of the prefixes, and all others.

    Args:
        params: parameters of the network.
        prefixes: path prefixes, such as 'head/'.
    """
    return (
        _filter(params, lambda path: path.startswith(prefixes)),
        _filter(params, lambda path: not path.startswith(prefixes)),
    )


def merge(*trees: PyTree) -> PyTree:
    """Merges trees into one; of leaves with the same path, the last one is taken."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat |= traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def restrict(params: PyTree, like: PyTree) -> PyTree:
    """Returns the leaves of `params` whose paths also occur in the tree `like`."""
    paths = traverse_util.flatten_dict(like, sep="/")
    return _filter(params, paths.__contains__)


def count_parameters(params: PyTree) -> int:
    """Returns the total number of elements of all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _filter(params: PyTree, keep: Callable[[str], bool]) -> PyTree:
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({p: x for p, x in flat.items() if keep(p)}, sep="/")
