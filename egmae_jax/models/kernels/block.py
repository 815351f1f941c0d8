"""A ConvNeXt block as two kernels, and its gradients as three, for TPUs.

Its plain form is `models.convnext.ConvNeXtBlock`, layer by layer.
"""

from typing import Any

import jax
import jax.numpy as jnp

from egmae_jax.core import platform, sharding
from egmae_jax.models.kernels import depthwise_tpu, mlp_tpu
from egmae_jax.models.kernels.mlp_tpu import Weights

PyTree = Any


def is_supported(x: jax.Array, kernel_size: int) -> bool:
    """Whether `convnext_block` computes features [B, H, W, C] on the platform traced for."""
    return (
        platform.runs_tpu_kernels()
        and depthwise_tpu.is_supported(x, kernel_size)
        and mlp_tpu.is_supported(x)
    )


def convnext_block(x: jax.Array, scales: jax.Array | None, params: PyTree) -> jax.Array:
    """x + drop_path(gamma * mlp(layer_norm(depthwise_conv(x)))), if `is_supported`.

    Args:
        x: features [B, H, W, C].
        scales: drop-path factors [B], which have no gradient; None drops nothing.
        params: parameters of a `ConvNeXtBlock` without response norm.
    """
    conv, norm, fc1, fc2 = (params[name] for name in ("conv_dw", "norm", "fc1", "fc2"))
    weights = Weights(
        norm["scale"],
        norm["bias"],
        fc1["kernel"],
        fc1["bias"],
        fc2["kernel"],
        fc2["bias"],
        params["gamma"],
    )
    factors = jnp.ones(len(x), jnp.float32) if scales is None else scales
    block = sharding.by_device(_block, batched=2)
    return block(x, factors, conv["kernel"], conv["bias"], weights)


@jax.custom_vjp
def _block(x, scales, kernel, bias, weights):
    return _block_forward(x, scales, kernel, bias, weights)[0]


def _block_forward(x, scales, kernel, bias, weights):
    y = depthwise_tpu.conv(x, kernel, bias)
    out = mlp_tpu.forward(_pixels_first(x), _pixels_first(y), scales, weights)
    return _batch_first(out), (x, y, scales, kernel, weights)


def _block_backward(residuals, gradient):
    x, y, scales, kernel, weights = residuals
    y_gradient, bias_gradient, weight_gradients = mlp_tpu.backward(
        _pixels_first(gradient), _pixels_first(y), scales, weights
    )
    y_gradient = _batch_first(y_gradient)
    no_bias = jnp.zeros(x.shape[-1:], x.dtype)
    return (
        depthwise_tpu.conv(y_gradient, kernel[::-1, ::-1], no_bias, gradient),
        jnp.zeros_like(scales),
        depthwise_tpu.kernel_gradient(x, y_gradient, len(kernel)).astype(kernel.dtype),
        bias_gradient.astype(kernel.dtype),
        jax.tree.map(lambda g, w: g.astype(w.dtype), weight_gradients, weights),
    )


_block.defvjp(_block_forward, _block_backward)


def _pixels_first(x: jax.Array) -> jax.Array:
    return x.transpose(1, 2, 0, 3)


def _batch_first(x: jax.Array) -> jax.Array:
    return x.transpose(2, 0, 1, 3)
