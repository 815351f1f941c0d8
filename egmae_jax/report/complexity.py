"""What a network costs: parameters, and multiply-adds by XLA's own count."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egmae_jax import models
from egmae_jax.models.init import abstract_params


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
    params = abstract_params(model, image)

    def logits(params, images):
        return model.apply({"params": params}, images)

    cost: Any = jax.jit(logits).lower(params, image).cost_analysis()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    trained = [x.size for path, x in leaves if path[-1].key not in ("mean", "var")]
    return Complexity(sum(trained), cost["flops"] / 2)
