"""What several networks are made of: convolutions as PyTorch has them, pooling, and taps."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from egmae_jax.models.batch_norm import BatchNorm
from egmae_jax.models.convolution import conv2d


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
        features: output channels.
        kernel_size: of a square kernel.
        strides: likewise.
        padding: zeros on each side.
        use_bias: whether there is one.
        dtype: of compute.
        kernel_init: how a new kernel is drawn.
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


def max_pool(x: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]) -> jax.Array:
    """Maxima of 3x3 windows, two pixels apart; [B, H, W, C] -> [B, H', W', C].

    Args:
        x: what is pooled.
        padding: pixels added at top and bottom, and at left and right, that no maximum is of.
    """
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)


def below(addresses: frozenset[str], module: str) -> frozenset[str]:
    """Of some layer addresses those within a submodule, relative to it."""
    prefix = f"{module}/"
    return frozenset(x.removeprefix(prefix) for x in addresses if x.startswith(prefix))
