"""Devices: the mesh and where arrays lie on it. The only module that knows devices.

Training is data-parallel by `jax.jit` over one named axis, 'data': batches are split along it,
parameters and the resident images are whole on every device. XLA adds the one all-reduce of the
gradients.
"""

import functools
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PyTree = Any


def make_mesh() -> Mesh:
    """All devices in a row along the axis 'data'."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that are whole on every device."""
    return NamedSharding(mesh, P())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a whole copy of every array on every device.

    JAX arrays are copied, never aliased. A CPU may go on using the memory of numpy arrays (JAX 0.10
    does where they begin at a multiple of 64 bytes): do not write to them afterwards.
    """
    place = functools.partial(jax.device_put, device=replicated(mesh), may_alias=False)
    return jax.tree.map(place, tree)


def local_rows(batch_size: int) -> slice:
    """The part of every batch that this host reads."""
    share = batch_size // jax.process_count()
    return slice(share * jax.process_index(), share * (jax.process_index() + 1))


def place_batches(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts this host's rows of some batches [steps, rows, ...] on its devices.

    Returns:
        Arrays [steps, B, ...] of all hosts' rows, each batch split over the devices.
    """
    sharding = NamedSharding(mesh, P(None, "data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def split_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Inside jit: splits every array's first axis over the devices."""
    sharding = NamedSharding(mesh, P("data"))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)
