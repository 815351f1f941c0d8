"""What several networks are made of: convolutions and batch norm as PyTorch has them, and taps."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

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


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm2d.

    The running statistics are leaves `mean` and `var` beside `scale` and `bias`, as in a PyTorch
    state dict: loading, saving and averaging weights treat them like parameters. No gradient and no
    optimizer may touch them (`egmae_jax.trainable`); a training call returns what they become in
    the collection 'batch_stats', in a tree of the same paths, if it is mutable.

    Under `jax.jit` on a mesh the statistics are those of the whole batch on all devices.

    Attributes:
        frozen: in training, too, normalises by the running statistics and leaves them.
        dtype: of the result; statistics are computed in float32.
        scale_init: what the scales start from.
    """

    frozen: bool = False
    dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    momentum: float = 0.1  # share of the new batch, PyTorch's sense
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> the same."""
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.param("mean", nn.initializers.zeros, channels)
        var = self.param("var", nn.initializers.ones, channels)
        y = x.astype(jnp.float32)
        if train and not self.frozen and not self.is_initializing():
            running = mean, var
            mean = y.mean(axis=(0, 1, 2))
            var = jnp.square(y - mean).mean(axis=(0, 1, 2))
            count = y.size // y.shape[-1]
            # PyTorch normalises by the biased variance and keeps the unbiased one.
            batch = mean, var * (count / max(count - 1, 1))
            for name, old, new in zip(("mean", "var"), running, batch, strict=True):
                value = (1 - self.momentum) * old + self.momentum * jax.lax.stop_gradient(new)
                self.sow(
                    "batch_stats", name, value, init_fn=lambda: None, reduce_fn=lambda _, new: new
                )
        multiplier = scale * jax.lax.rsqrt(var + self.epsilon)
        return ((y - mean) * multiplier + bias).astype(self.dtype)


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
