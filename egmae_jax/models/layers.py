"""Layers that several networks share: PyTorch's convolutions, linear layers, norms and pooling."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from egmae_jax.core import platform
from egmae_jax.models.batch_norm import BatchNorm
from egmae_jax.models.kernels.convolution import conv2d
from egmae_jax.models.kernels.mlp import linear, mlp
from egmae_jax.models.kernels.norm import layer_norm
from egmae_jax.models.kernels.operations import broadcast_to, gelu

# timm initializes kernels by trunc_normal_(std=0.02), which truncates at +-2, not at two standard
# deviations, and so is a plain normal distribution. Biases start at zero.
KERNEL_STD = 0.02
kernel_init = nn.initializers.normal(KERNEL_STD)
# PyTorch's kaiming_normal_, by outputs in ResNet and EfficientNet, by inputs in DenseNet and
# SqueezeNet. torchvision draws SqueezeNet's uniformly, with this standard deviation.
fan_out_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
fan_in_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# PyTorch draws the kernels of nn.Conv2d and nn.Linear uniformly; this has their standard deviation.
default_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "normal")


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


def is_tapped(module: nn.Module, *names: str) -> bool:
    """Whether a call reads the activations that `tap` names, or their gradients."""
    is_perturbed = any(module.has_variable("perturbations", name) for name in names)
    return is_perturbed or module.is_mutable_collection("intermediates")


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
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        size = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (size, size, x.shape[-1], self.features))
        kernel = platform.cast(kernel, self.dtype)
        y = conv2d(x.astype(self.dtype), kernel, self.strides, self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y += broadcast_to(platform.cast(bias, self.dtype), y.shape)
            y = platform.materialize_gradient(y)
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
    def parameters(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Returns the kernel [C, features] for C `channels` and the bias [features]."""
        kernel = self.param("kernel", kernel_init, (channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., features]."""
        kernel, bias = self.parameters(x.shape[-1])
        if platform.for_gpu() and x.ndim > 2:
            return linear(x.astype(self.dtype), kernel, bias)
        y = x.astype(self.dtype) @ platform.cast(kernel, self.dtype)
        return y + broadcast_to(bias.astype(self.dtype), y.shape)


class LayerNorm(nn.Module):
    """Normalizes the channels of each pixel: `nn.LayerNorm` with a faster gradient.

    Attributes:
        epsilon: constant added to the variance.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C], computed in float32."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return layer_norm(x, scale, bias, epsilon=self.epsilon)


def global_response_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Global response normalization: channels compete by norm (Woo et al. 2023, section 3).

    Args:
        x: features [B, N, C] at the N pixels of each image; norms are computed in float32.
        scale: scale of each channel, [C].
        bias: bias of each channel, [C].
    """
    squares = jnp.square(x.astype(jnp.float32)).sum(axis=1, keepdims=True)
    # The square root has no derivative at 0. As in PyTorch, the gradient of a zero norm is 0.
    norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    shares = norms / (norms.mean(axis=-1, keepdims=True) + 1e-6)
    return platform.materialize(x + x * (scale * shares).astype(x.dtype) + bias.astype(x.dtype))


class Mlp(nn.Module):
    """Linear layer to `hidden` channels, GELU, and a linear layer back, of each pixel or token.

    As the branch of a residual block it may be scaled, see `scale_branch`.

    Its parameters `fc1` and `fc2` lie in the scope of the enclosing block.

    Attributes:
        hidden: number of channels between the two layers.
        response_norm: whether ConvNeXt V2's global response normalization follows GELU.
        dtype: compute dtype.
    """

    hidden: int
    response_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, gamma: jax.Array | None = None, scales: jax.Array | None = None
    ) -> jax.Array:
        """[B, ..., C] -> [B, ..., C]."""
        if isinstance(self.parent, nn.Module):  # unless it is used by itself
            nn.share_scope(self.parent, self)
        channels = x.shape[-1]
        fc1 = Linear(self.hidden, self.dtype, name="fc1")
        fc2 = Linear(channels, self.dtype, name="fc2")
        if platform.for_gpu() and not self.response_norm:
            x = x.astype(self.dtype)
            return mlp(x, *fc1.parameters(channels), *fc2.parameters(self.hidden), gamma, scales)
        # As a matrix: on a CPU, gradients that sum over several axes are slow.
        y = x if platform.for_gpu() else platform.materialize(x.reshape(-1, channels))
        y = fc1(y)
        y = gelu(platform.materialize_gradient(y))
        if self.response_norm:
            scale = self.param("grn_scale", nn.initializers.zeros, (self.hidden,))
            bias = self.param("grn_bias", nn.initializers.zeros, (self.hidden,))
            images = y.reshape(x.shape[0], math.prod(x.shape[1:-1]), self.hidden)
            y = global_response_norm(images, scale, bias).reshape(y.shape)
        y = fc2(y)
        return scale_branch(platform.materialize(y).reshape(x.shape), gamma, scales)


def attention(qkv: jax.Array, num_heads: int, bias: jax.Array | None = None) -> jax.Array:
    """Multi-head self-attention between the tokens of a sequence (Vaswani et al. 2017).

    Args:
        qkv: queries, keys and values of all heads, in this order, [..., N, 3 * C].
        num_heads: number of heads, which divides C.
        bias: added to the logits, which broadcasts to [..., num_heads, N, N].

    Returns:
        Weighted values, [..., N, C]. The softmax is computed in float32.
    """
    *leading, channels = qkv.shape
    width = channels // 3 // num_heads
    q, k, v = jnp.moveaxis(qkv.reshape(*leading, 3, num_heads, width), -3, 0)
    logits = jnp.einsum("...qhc,...khc->...hqk", q, k, preferred_element_type=jnp.float32)
    logits *= width**-0.5
    weights = nn.softmax(logits if bias is None else logits + bias, axis=-1)
    mixed = jnp.einsum("...hqk,...khc->...qhc", weights.astype(v.dtype), v)
    return mixed.reshape(*leading, channels // 3)


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm; an odd `kernel_size` keeps the spatial size."""

    features: int
    kernel_size: int
    strides: int = 1
    frozen: bool = False
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = kernel_init

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


class Head(nn.Module):
    """Global average pooling and a linear layer, in float32."""

    num_classes: int
    kernel_init: nn.initializers.Initializer = default_init

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Computes the logits: [B, h, w, C] -> [B, num_classes]."""
        x = features.astype(jnp.float32).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=self.kernel_init, name="fc")(x)


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


def block_scales(
    module: nn.Module, rates: np.ndarray, batch: int, *, train: bool
) -> list[jax.Array | None]:
    """Returns the drop-path factors [B] of each block of a network for one call.

    Args:
        module: the network; its rng stream 'drop_path' is needed if any rate is above 0.
        rates: drop-path rate of each block, [num_blocks], in [0, 1).
        batch: number of examples B.
        train: whether blocks drop anything; otherwise each has None, which `drop_path` ignores.
    """
    if not train or not np.any(rates):
        return [None] * len(rates)
    # All blocks at once, as many small draws take longer to compile and to run. The barrier hides
    # each row's place, so that equal blocks have equal programs, compiled once.
    return platform.materialize(list(drop_path_scales(module.make_rng("drop_path"), rates, batch)))


def scale_branch(update: jax.Array, gamma: jax.Array | None, scales: jax.Array | None) -> jax.Array:
    """Scales a residual branch [B, ..., C] by a factor of each channel and of each example.

    Args:
        update: the branch.
        gamma: layer scale, [C]; None: 1.
        scales: drop-path factors, [B]; None drops nothing.
    """
    if gamma is not None:
        update *= broadcast_to(gamma.astype(update.dtype), update.shape)
    return drop_path(update, scales)


def drop_path(update: jax.Array, scales: jax.Array | None) -> jax.Array:
    """Scales each example's residual branch [B, ..., C] by its factor in `scales` [B].

    With `scales` None, nothing is dropped.
    """
    if scales is None:
        return update
    return update * jnp.expand_dims(scales, range(1, update.ndim)).astype(update.dtype)


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
