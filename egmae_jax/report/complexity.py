"""What a network costs: parameters, and multiply-adds by XLA's own count."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egmae_jax import models
from egmae_jax.models.init import abstract_variables


class Complexity(NamedTuple):
    """Of one network and one image."""

    parameters: int
    multiply_adds: float  # half of XLA's floating-point operations


def of_network(name: str, num_classes: int, image_size: int) -> Complexity:
    """Counts for a network of `models.create` on one image [image_size, image_size, 3].

    XLA counts the lowered program, before it optimises; nothing is compiled. Statistics of batch
    norms are not parameters.
    """
    model = models.create(name, num_classes)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = abstract_variables(model, image)
    cost: Any = jax.jit(model.apply).lower(variables, image).cost_analysis()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Complexity(parameters, cost["flops"] / 2)
