"""Layer normalization, with the gradient that takes the fewest kernels on a GPU."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.core import platform
from egmae_jax.models.kernels.operations import broadcast_to, pixel_sums


def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float = 1e-6
) -> jax.Array:
    """Normalizes the channels of each pixel, computed in float32.

    Args:
        x: features [..., C].
        scale: scale of each channel, [C].
        bias: bias of each channel, [C].
        epsilon: constant added to the variance.

    Returns:
        Features [..., C] in the dtype of `x`.
    """
    if platform.for_gpu() and x.ndim > 2:
        return _layer_norm(x, scale, bias, epsilon)
    return layer_norm_plain(x, scale, bias, epsilon=epsilon)


def layer_norm_plain(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float = 1e-6
) -> jax.Array:
    """Computes `layer_norm` with JAX's own gradient."""
    y = _normalize(x, epsilon)
    return (y * broadcast_to(scale, y.shape) + broadcast_to(bias, y.shape)).astype(x.dtype)


def _normalize(x: jax.Array, epsilon: float) -> jax.Array:
    y = x.astype(jnp.float32)
    # E[y^2] - E[y]^2 would lose precision where the mean is large.
    y -= y.mean(axis=-1, keepdims=True)
    return y * lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + epsilon)


@functools.partial(platform.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    return (_normalize(x, epsilon) * scale + bias).astype(x.dtype)


def _layer_norm_backward(
    epsilon: float, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of scale and bias apart from that of `x`.

    The kernel of the latter, which normalizes `x` again, cannot also sum over pixels, and would
    write its normalized pixels in float32. Here the means of all layers of one shape come from
    common kernels.
    """
    x, scale = residuals

    def normalize(x: jax.Array) -> jax.Array:
        # Not as in the forward pass, or XLA would keep its variance, by another kernel.
        return _normalize(platform.join(x.astype(jnp.float32)), epsilon) * scale

    (x_gradient,) = jax.vjp(normalize, x)[1](gradient.astype(jnp.float32))
    gradient = lax.optimization_barrier(gradient).astype(jnp.float32)
    y = x.astype(jnp.float32)
    # By sums of y and y^2 from one kernel. Less one value of its image, y is small enough for that.
    y = platform.join(y - platform.join(y[(slice(None), *(slice(1),) * (y.ndim - 1))]))
    # As one reduction, of which XLA computes up to eight in a kernel.
    zero = jnp.zeros((), y.dtype)
    sums = lax.reduce(
        (y, jnp.square(y)), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (y.ndim - 1,)
    )
    mean, square = (platform.join(x) / y.shape[-1] for x in lax.optimization_barrier(sums))
    factor = lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + epsilon)
    y = (y - mean[..., None]) * factor[..., None]
    sums = pixel_sums(gradient * y), pixel_sums(gradient)
    return x_gradient, *(x.astype(scale.dtype) for x in sums)


_layer_norm.defvjp(
    lambda x, scale, bias, epsilon: (_layer_norm(x, scale, bias, epsilon), (x, scale)),
    _layer_norm_backward,
)
