"""What several networks are made of: convolutions as PyTorch has them, pooling, and taps."""

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


def tap(module: nn.Module, x: jax.Array, name: str = "output") -> jax.Array:
    """Names an activation, so that `egmae_jax.explain` can read it and its gradient.

    It costs nothing unless a call asks for the collections 'intermediates' or 'perturbations'.
    The activation's address is the module's path, and the name where it is not 'output':
    'layer4_1/conv2', 'stages_3/blocks_2/depthwise'.
    """
    if module.has_variable("perturbations", name):
        x = x + module.get_variable("perturbations", name)  # its gradient is the activation's
    module.sow("intermediates", name, x, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    return x


class Conv(nn.Module):
    """Convolution with PyTorch's symmetric zero padding; its output is tapped.

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
            y = y + bias.astype(self.dtype)
        return tap(self, y)


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm; `kernel_size` is odd, the padding half of it."""

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
    """Draws the factors of stochastic depth for all blocks of one step (Huang et al. 2016).

    A block's residual branch is dropped for whole examples, with the block's rate, and scaled up
    for the examples that keep it, so that its expectation stays.

    Args:
        key: key of this step.
        rates: drop-path rate of each block, [num_blocks], in [0, 1).
        batch: number of examples B.

    Returns:
        [num_blocks, B], float32: 0 or 1 / (1 - rate), all drawn independently.
    """
    keep = 1.0 - jnp.asarray(rates, jnp.float32)[:, None]
    # Else every block would compute its row by a program of its own.
    return platform.materialize(jax.random.bernoulli(key, keep, (len(keep), batch)) / keep)


def drop_path(update: jax.Array, scales: jax.Array | None) -> jax.Array:
    """Multiplies each example's residual branch [B, H, W, C] by its factor in `scales` [B].

    None drops nothing.
    """
    return update if scales is None else update * scales[:, None, None, None].astype(update.dtype)


Padding = tuple[tuple[int, int], tuple[int, int]]  # at top and bottom, at left and right


def max_pool(x: jax.Array, padding: Padding) -> jax.Array:
    """Maxima of 3x3 windows, two pixels apart; [B, H, W, C] -> [B, H', W', C].

    Args:
        x: what is pooled.
        padding: pixels added, that no maximum is of.
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
    """XLA's own is no deterministic operation on a GPU, and refused where those are asked for.

    The first of equal maxima gets the gradient, as it does there and in PyTorch.
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
    """The layer addresses within a submodule, relative to it."""
    prefix = f"{module}/"
    return frozenset(x.removeprefix(prefix) for x in addresses if x.startswith(prefix))
