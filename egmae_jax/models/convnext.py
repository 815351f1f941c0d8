"""ConvNeXt (Liu et al. 2022; paper section 3.2, equations 1-3), equivalent to timm's.

ConvNeXt V2 (Woo et al. 2023) replaces the layer scale by global response normalization.

Arrays are channels-last. LayerNorm uses eps 1e-6, GELU is the exact one (erf), the classifier is
pool -> norm -> linear, and the drop-path rate grows linearly with depth. Submodules have timm's
names, so that `egmae_jax.models.timm_names` is a table of patterns. On a CPU, the depthwise
convolution, GELU and sums over pixels use the faster forms in `egmae_jax.models.kernels`.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from egmae_jax.core.platform import materialize
from egmae_jax.models.kernels.depthwise import depthwise_conv
from egmae_jax.models.kernels.operations import broadcast_to, gelu
from egmae_jax.models.layers import Conv, LayerNorm, Linear, drop_path, drop_path_scales, tap
from egmae_jax.models.registry import register

TOTAL_STRIDE = 32  # input pixels, along each side, per feature of the last stage

# timm initializes kernels by trunc_normal_(std=0.02), which truncates at +-2, not at two standard
# deviations, and so is a plain normal distribution. Biases start at zero.
KERNEL_STD = 0.02
kernel_init = nn.initializers.normal(KERNEL_STD)


class DepthwiseConv(nn.Module):
    """Depthwise convolution with stride 1 and zero padding, which keeps the spatial size."""

    kernel_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C] in `dtype`."""
        size, channels = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", kernel_init, (size, size, 1, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return depthwise_conv(*(a.astype(self.dtype) for a in (x, kernel, bias)))


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
    return materialize(x + x * (scale * shares).astype(x.dtype) + bias.astype(x.dtype))


class Mlp(nn.Module):
    """Linear layer to `hidden` channels, GELU, and a linear layer back, applied to each pixel.

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
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        if isinstance(self.parent, nn.Module):  # unless it is used by itself
            nn.share_scope(self.parent, self)
        batch, height, width, channels = x.shape
        # As a matrix: on a CPU, gradients that sum over several axes are slow.
        y = materialize(x.reshape(-1, channels))
        y = Linear(self.hidden, self.dtype, name="fc1")(y)
        y = gelu(y)
        if self.response_norm:
            scale = self.param("grn_scale", nn.initializers.zeros, (self.hidden,))
            bias = self.param("grn_bias", nn.initializers.zeros, (self.hidden,))
            images = y.reshape(batch, height * width, self.hidden)
            y = global_response_norm(images, scale, bias).reshape(y.shape)
        y = Linear(channels, self.dtype, name="fc2")(y)
        return materialize(y).reshape(x.shape)


class ConvNeXtBlock(nn.Module):
    """x + drop_path(gamma * fc2(gelu(fc1(norm(conv_dw(x)))))) (paper equations 1 and 2).

    With `response_norm`, the block of V2: x + drop_path(fc2(grn(gelu(fc1(norm(conv_dw(x))))))).
    """

    dtype: Any = jnp.float32
    remat: bool = False
    response_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]; `scales` [B] are drop-path factors, None drops nothing."""
        channels = x.shape[-1]
        mlp = nn.remat(Mlp) if self.remat else Mlp
        y = DepthwiseConv(7, self.dtype, name="conv_dw")(x)
        y = tap(self, y, "depthwise")
        y = LayerNorm(name="norm")(y)
        y = mlp(4 * channels, self.response_norm, self.dtype, name="mlp")(y)
        if not self.response_norm:
            gamma = self.param("gamma", nn.initializers.constant(1e-6), (channels,))
            y *= broadcast_to(gamma.astype(self.dtype), y.shape)
        return tap(self, x + drop_path(y, scales))


class Stem(nn.Module):
    """Embeds 4x4 patches of the image and normalizes them."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = Conv(self.features, 4, 4, use_bias=True, dtype=self.dtype, name="conv")(images)
        return LayerNorm(name="norm")(x)


class Downsample(nn.Module):
    """Halves the resolution between stages: LayerNorm, then a 2x2 convolution with stride 2."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = LayerNorm(name="norm")(x)
        return Conv(self.features, 2, 2, use_bias=True, dtype=self.dtype, name="conv")(x)


class Stage(nn.Module):
    """Blocks at one resolution; every stage but the first starts by halving the resolution."""

    features: int
    depth: int
    downsample: bool
    dtype: Any = jnp.float32
    remat: bool = False
    response_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, scales: Sequence[jax.Array | None]) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]; `scales` are the blocks' drop-path factors."""
        if self.downsample:
            x = Downsample(self.features, dtype=self.dtype, name="downsample")(x)
        for index in range(self.depth):
            block = ConvNeXtBlock(
                self.dtype, self.remat, self.response_norm, name=f"blocks_{index}"
            )
            x = block(x, scales[index])
        return x


class Head(nn.Module):
    """Global average pooling, LayerNorm and a linear layer (paper equation 3)."""

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = features.mean(axis=(1, 2))
        x = LayerNorm(name="norm")(x)
        # Logits are float32 for every compute dtype: softmax and loss need the precision.
        return Linear(self.num_classes, name="fc")(x)


class ConvNeXt(nn.Module):
    """ConvNeXt classifier.

    Attributes:
        depths: number of blocks in each stage.
        dims: number of channels in each stage.
        num_classes: number of classes.
        drop_path_rate: drop-path rate of the last block; it grows linearly from 0 at the first.
        dtype: compute dtype, float32 or bfloat16. Parameters are always float32.
        remat: whether the backward pass recomputes each MLP's activations instead of keeping them,
            which takes less memory and more time.
        frozen: addresses of layers that do not train. ConvNeXt ignores it, as it has no running
            statistics to freeze.
        response_norm: whether this is a ConvNeXt V2.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_classes: int
    drop_path_rate: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False
    frozen: frozenset[str] = frozenset()
    response_norm: bool = False

    fresh_prefixes = ("head/fc/",)  # parameters that ImageNet weights do not provide
    stride = TOTAL_STRIDE
    min_size = TOTAL_STRIDE  # least image side in pixels
    needs_multiple = True  # image sides must be multiples of the stride

    def setup(self):
        self.stem = Stem(self.dims[0], dtype=self.dtype)
        self.stages = [
            Stage(features, depth, index > 0, self.dtype, self.remat, self.response_norm)
            for index, (features, depth) in enumerate(zip(self.dims, self.depths, strict=True))
        ]
        self.head = Head(self.num_classes)

    @property
    def drop_path_rates(self) -> np.ndarray:
        """Drop-path rate of each block, float [num_blocks], linear in depth."""
        return np.linspace(0.0, self.drop_path_rate, sum(self.depths))

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Maps each spatial convolution's address to path prefixes of its parameters, in order."""
        layers: dict[str, tuple[str, ...]] = {"stem/conv": ("stem/",)}
        for stage, depth in enumerate(self.depths):
            if stage:
                layers[f"stages_{stage}/downsample/conv"] = (f"stages_{stage}/downsample/",)
            for index in range(depth):
                block = f"stages_{stage}/blocks_{index}"
                layers[f"{block}/depthwise"] = (f"{block}/",)
        return layers

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Returns the standard deviation of a new leaf, or None for a constant one."""
        del shape
        return KERNEL_STD if path.endswith("kernel") else None

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the last stage's features.

        Args:
            images: normalized images [B, H, W, 3].
            train: whether to apply drop path, which needs the rng stream 'drop_path'.

        Returns:
            Features [B, H/32, W/32, dims[-1]].

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        height, width = images.shape[1:3]
        if height % TOTAL_STRIDE or width % TOTAL_STRIDE:
            raise ValueError(
                f"ConvNeXt needs image sides divisible by {TOTAL_STRIDE}; got {height}x{width}."
            )
        scales: Sequence[jax.Array | None] = [None] * sum(self.depths)
        if train and self.drop_path_rate > 0:
            # All blocks at once, as many small draws take longer to compile and to run. The barrier
            # hides each row's place, so that equal blocks have equal programs, compiled once.
            key = self.make_rng("drop_path")
            drawn = list(drop_path_scales(key, self.drop_path_rates, len(images)))
            scales = materialize(drawn)
        x, blocks = self.stem(images), iter(scales)
        for stage in self.stages:
            x = stage(x, list(itertools.islice(blocks, stage.depth)))
        return x

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images [B, H, W, 3] -> float32 logits [B, num_classes]."""
        return self.head(self.features(images, train=train))


# Depths, widths and tag of the ImageNet-1k checkpoint that `imagenet.weights='default'` downloads
# from the Hugging Face hub. The tag is given because timm's default may be another checkpoint
# (that of `convnext_tiny` is `in12k_ft_in1k`; the paper uses `fb_in1k`).
_SIZES = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320), "d2_in1k"),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384), "d1_in1k"),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512), "d1_in1k"),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640), "d1h_in1k"),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768), "fb_in1k"),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768), "fb_in1k"),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024), "fb_in1k"),
}


def register_convnext(name: str, depths: tuple[int, ...], dims: tuple[int, ...], tag: str) -> None:
    """Registers a ConvNeXt; a name that starts with 'convnextv2' makes it a ConvNeXt V2."""
    build = functools.partial(ConvNeXt, depths, dims, response_norm=name.startswith("convnextv2"))
    register(name, build, family="convnext", weights=f"timm/{name}.{tag}")


for _size, (_depths, _dims, _tag) in _SIZES.items():
    register_convnext(f"convnext_{_size}", _depths, _dims, _tag)
    if _size != "small":  # there is no V2 of this size
        register_convnext(f"convnextv2_{_size}", _depths, _dims, "fcmae_ft_in1k")
