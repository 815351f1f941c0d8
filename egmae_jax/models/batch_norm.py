"""PyTorch's batch norm, with two passes over the pixels in the forward and backward direction."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from egmae_jax.core.platform import custom_vjp, materialize
from egmae_jax.models.kernels.operations import column_sums


class BatchNorm(nn.Module):
    """Batch norm with the semantics of PyTorch's BatchNorm2d.

    The running statistics, `mean` and `var`, are in the collection `batch_stats`; a training call
    with `mutable=["batch_stats"]` returns their new values. As in PyTorch and unlike in Flax, the
    running variance averages unbiased variances.

    Under `jax.jit` on a mesh, the statistics are those of the whole batch on all devices.

    Attributes:
        frozen: whether training also normalises by the running statistics, and keeps them.
        dtype: dtype of the result; statistics are computed in float32.
        scale_init: initializer of the scales.
        momentum: weight of the new batch in the running statistics, as in PyTorch.
        epsilon: constant added to the variance.
    """

    frozen: bool = False
    dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x [B, H, W, C], with the statistics of the batch if `train` and not frozen."""
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        if not train or self.frozen:
            multiplier = scale * lax.rsqrt(var.value + self.epsilon)
            y = x.astype(jnp.float32) * multiplier + (bias - mean.value * multiplier)
            return y.astype(self.dtype)
        y, batch_mean, batch_var = _normalize(x, scale, bias, self.epsilon)
        count = x.size // x.shape[-1]
        # PyTorch normalises by the biased variance, but averages the unbiased one.
        batch_var *= count / max(count - 1, 1)
        if not self.is_initializing():
            for running, new in ((mean, batch_mean), (var, batch_var)):
                running.value = (1 - self.momentum) * running.value + self.momentum * new
        return y.astype(self.dtype)


@functools.partial(custom_vjp, nondiff_argnums=(3,))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the normalised batch [B, H, W, C], its mean [C] and biased variance [C], in float32.

    Gradients of the two returned statistics are ignored.
    """
    return _normalize_forward(x, scale, bias, epsilon)[0]


def _normalize_forward(x, scale, bias, epsilon):
    y = x.astype(jnp.float32)
    count = x.size // x.shape[-1]
    mean = _sum(y) / count
    var = _sum(jnp.square(y - mean)) / count  # E[y^2] - E[y]^2 would lose precision
    inverse = lax.rsqrt(var + epsilon)
    multiplier = scale * inverse
    result = y * multiplier + (bias - mean * multiplier)
    return (result, mean, var), (x, scale, mean, inverse)


def _normalize_backward(epsilon, residuals, gradients):
    """Gradients of Ioffe and Szegedy 2015, section 3, with the sums over the batch taken first."""
    x, scale, mean, inverse = residuals
    gradient = materialize(gradients[0])
    y = x.astype(jnp.float32)
    count = x.size // x.shape[-1]
    bias_gradient = _sum(gradient)
    scale_gradient = _sum(gradient * (y - mean)) * inverse
    multiplier = scale * inverse
    slope = multiplier * inverse * scale_gradient / count
    shift = multiplier * bias_gradient / count
    x_gradient = multiplier * gradient - slope * (y - mean) - shift
    return materialize(x_gradient.astype(x.dtype)), scale_gradient, bias_gradient


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _sum(x: jax.Array) -> jax.Array:
    """Sums over batch and pixels: [B, H, W, C] -> [C]."""
    return column_sums(x.reshape(-1, x.shape[-1]))
