"""Size and cost of a network: parameters, and multiply-adds as XLA counts them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egmae_jax import models
from egmae_jax.models.init import abstract_variables


class Complexity(NamedTuple):
    """Size of a network and its cost for one image."""

    parameters: int  # without the running statistics of batch norms
    multiply_adds: float  # half of XLA's floating-point operations


def of_network(name: str, num_classes: int, image_size: int) -> Complexity:
    """Complexity of a network of `models.create` for one image [image_size, image_size, 3].

    XLA counts the lowered program, before any optimisation; nothing is compiled.
    """
    model = models.create(name, num_classes)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = abstract_variables(model, image)
    cost: Any = jax.jit(model.apply).lower(variables, image).cost_analysis()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Complexity(parameters, cost["flops"] / 2)
