"""Layers that several networks share: PyTorch's convolutions, linear layers, norms and pooling."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from egmae_jax.core import platform
from egmae_jax.models.batch_norm import BatchNorm
from egmae_jax.models.kernels.convolution import conv2d
from egmae_jax.models.kernels.operations import broadcast_to


def tap(module: nn.Module, x: jax.Array, name: str = "output") -> jax.Array:
    """Names an activation, so that `egmae_jax.explain` can read it and its gradient.

    It costs nothing unless a call asks for the collections 'intermediates' or 'perturbations'.
    The activation's address is the module's path, followed by the name unless that is 'output':
    'layer4_1/conv2', 'stages_3/blocks_2/depthwise'.
    """
    if module.has_variable("perturbations", name):
        x = x + module.get_variable("perturbations", name)  # its gradient is the activation's
    module.sow("intermediates", name, x, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    return x


class Conv(nn.Module):
    """Convolution with PyTorch's symmetric zero padding, and a `tap` on its output.

    Attributes:
        features: number of output channels.
        kernel_size: side of the square kernel in pixels.
        strides: step along both axes in pixels.
        padding: zeros added on each side, in pixels.
        use_bias: whether a bias is added.
        dtype: compute dtype.
        kernel_init: initializer of the kernel.
    """

    features: int
    kernel_size: int
    strides: int = 1
    padding: int = 0
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        size = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (size, size, x.shape[-1], self.features))
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y += broadcast_to(bias.astype(self.dtype), y.shape)
        return tap(self, y)


class Linear(nn.Module):
    """Linear layer over the channels: `nn.Dense` with a faster gradient on a CPU.

    Attributes:
        features: number of output channels.
        dtype: compute dtype.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., features]."""
        init = nn.initializers.normal(0.02)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return y + broadcast_to(bias.astype(self.dtype), y.shape)


class LayerNorm(nn.Module):
    """Normalizes the channels of each pixel: `nn.LayerNorm` with eps 1e-6 and a faster gradient."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C], computed in float32."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = x.astype(jnp.float32)
        # E[y^2] - E[y]^2 would lose precision where the mean is large.
        y -= y.mean(axis=-1, keepdims=True)
        y *= lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + 1e-6)
        return (y * broadcast_to(scale, y.shape) + broadcast_to(bias, y.shape)).astype(x.dtype)


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm; an odd `kernel_size` keeps the spatial size."""

    features: int
    kernel_size: int
    strides: int = 1
    frozen: bool = False
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        x = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            padding=self.kernel_size // 2,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        return BatchNorm(self.frozen, self.dtype, name="bn")(x, train=train)


def drop_path_scales(key: jax.Array, rates: jax.typing.ArrayLike, batch: int) -> jax.Array:
    """Samples the drop-path factors of all blocks for one step (Huang et al. 2016).

    Each block drops its residual branch for whole examples at its rate, and scales the branch up
    for the other examples, so that its expectation stays the same.

    Args:
        key: random key of the step.
        rates: drop-path rate of each block, [num_blocks], in [0, 1).
        batch: number of examples B.

    Returns:
        Factors, float32 [num_blocks, B]: 0 or 1 / (1 - rate), sampled independently.
    """
    keep = 1.0 - jnp.asarray(rates, jnp.float32)[:, None]
    # Else every block would compute its row by a program of its own.
    return platform.materialize(jax.random.bernoulli(key, keep, (len(keep), batch)) / keep)


def drop_path(update: jax.Array, scales: jax.Array | None) -> jax.Array:
    """Scales each example's residual branch [B, H, W, C] by its factor in `scales` [B].

    With `scales` None, nothing is dropped.
    """
    return update if scales is None else update * scales[:, None, None, None].astype(update.dtype)


Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)


def max_pool(x: jax.Array, padding: Padding) -> jax.Array:
    """Max pooling over 3x3 windows with stride 2, [B, H, W, C] -> [B, H', W', C].

    Args:
        x: features [B, H, W, C].
        padding: number of pixels added at each side, which are never a maximum.
    """
    pool = _max_pool if platform.is_deterministic() else _library_max_pool
    return pool(x, padding)


def _library_max_pool(x: jax.Array, padding: Padding) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, padding: Padding) -> jax.Array:
    return _library_max_pool(x, padding)


def _max_pool_backward(
    padding: Padding, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    """Deterministic gradient; XLA's own is refused on a GPU under --xla_gpu_deterministic_ops.

    The first of equal maxima gets the gradient, as in XLA and in PyTorch.
    """
    x, maxima = residuals
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    (height, width), (rows, columns) = padded.shape[1:3], maxima.shape[1:3]
    total, taken = jnp.zeros_like(padded), jnp.zeros(maxima.shape, bool)
    for i, j in itertools.product(range(3), range(3)):
        window = padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        hit = (window == maxima) & ~taken
        taken |= hit
        places = [(i, height - i - 2 * rows + 1, 1), (j, width - j - 2 * columns + 1, 1)]
        share = jnp.where(hit, gradient, 0)
        total += lax.pad(share, jnp.zeros((), share.dtype), [(0, 0, 0), *places, (0, 0, 0)])
    (top, _), (left, _) = padding
    return (total[:, top : top + x.shape[1], left : left + x.shape[2]],)


def _max_pool_forward(x, padding):
    maxima = _max_pool(x, padding)
    return maxima, (x, maxima)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def below(addresses: frozenset[str], module: str) -> frozenset[str]:
    """Selects the layer addresses within a submodule and makes them relative to it."""
    prefix = f"{module}/"
    return frozenset(x.removeprefix(prefix) for x in addresses if x.startswith(prefix))
