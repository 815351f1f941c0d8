"""ConvNeXt (Liu et al. 2022; paper section 3.2, equations 1-3) with timm's exact semantics.

ConvNeXt V2 (Woo et al. 2023) has global response normalization in place of the layer scale.

Channels come last. LayerNorm has eps 1e-6, GELU is the exact one (erf), the classifier is
pool -> norm -> linear, drop path grows linearly with depth. Submodules carry timm's names, so that
`egmae_jax.models.timm` is a table of patterns. On a CPU the depthwise convolution and the wide
layers run in the faster forms of `egmae_jax.models.kernels`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from egmae_jax.models.kernels.depthwise import depthwise_conv
from egmae_jax.models.kernels.mlp import MlpParams, mlp
from egmae_jax.models.kernels.operations import layer_norm
from egmae_jax.models.layers import Conv, drop_path, drop_path_scales, tap
from egmae_jax.models.registry import register

TOTAL_STRIDE = 32  # input pixels, along each side, per feature of the last stage

# timm draws kernels by trunc_normal_(std=0.02), which truncates at +-2, not at two standard
# deviations: a plain normal for all purposes. Biases are zeros.
kernel_init = nn.initializers.normal(0.02)
Dense = functools.partial(nn.Dense, kernel_init=kernel_init)


class DepthwiseConv(nn.Module):
    """Depthwise convolution with stride 1, zero padding and output of the input's size."""

    kernel_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> the same, in `dtype`."""
        size, channels = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", kernel_init, (size, size, 1, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return depthwise_conv(*(a.astype(self.dtype) for a in (x, kernel, bias)))


class LayerNorm(nn.Module):
    """Normalizes the channels of every pixel, with eps 1e-6."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> the same, computed in float32."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return layer_norm(x, scale, self.param("bias", nn.initializers.zeros, x.shape[-1:]))


class LinearParams(nn.Module):
    """Kernel and bias of a linear layer that `Mlp` computes together with others."""

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Kernel [channels, features] and bias [features]."""
        kernel = self.param("kernel", kernel_init, (channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class Mlp(nn.Module):
    """Linear layer to `hidden` channels, GELU, linear layer back; the same for every pixel.

    Its parameters lie in the scope of the block, `fc1` and `fc2`, where files of runs have them.

    Attributes:
        hidden: channels between the two layers.
        response_norm: whether ConvNeXt V2's global response normalization follows GELU.
        remat: computes the hidden activations again for the gradients instead of keeping them.
        dtype: compute dtype.
    """

    hidden: int
    response_norm: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> the same."""
        if isinstance(self.parent, nn.Module):
            nn.share_scope(self.parent, self)
        zeros, channels = nn.initializers.zeros, x.shape[-1]
        fc1 = LinearParams(self.hidden, name="fc1")(channels)
        fc2 = LinearParams(channels, name="fc2")(self.hidden)
        grn = (
            [self.param(f"grn_{name}", zeros, (self.hidden,)) for name in ("scale", "bias")]
            if self.response_norm
            else []
        )
        params = MlpParams(*(a.astype(self.dtype) for a in (*fc1, *fc2, *grn)))
        return mlp(x, params, remat=self.remat)


class ConvNeXtBlock(nn.Module):
    """x + drop_path(gamma * fc2(gelu(fc1(norm(conv_dw(x)))))): paper equations 1 and 2.

    With `response_norm` it is V2's: x + drop_path(fc2(grn(gelu(fc1(norm(conv_dw(x))))))).
    """

    dtype: Any = jnp.float32
    remat: bool = False
    response_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] -> the same; `scales` [B] are drop path's factors, None drops nothing."""
        channels = x.shape[-1]
        y = DepthwiseConv(7, self.dtype, name="conv_dw")(x)
        y = tap(self, y, "depthwise")
        y = LayerNorm(name="norm")(y)
        y = Mlp(4 * channels, self.response_norm, self.remat, self.dtype, name="mlp")(y)
        if not self.response_norm:
            y *= self.param("gamma", nn.initializers.constant(1e-6), (channels,)).astype(self.dtype)
        return tap(self, x + drop_path(y, scales))


class Stem(nn.Module):
    """4x4 patches of the image, embedded and normalised."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = Conv(self.features, 4, 4, use_bias=True, dtype=self.dtype, name="conv")(images)
        return LayerNorm(name="norm")(x)


class Downsample(nn.Module):
    """Halves the resolution between stages: norm, then 2x2 convolution with stride 2."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = LayerNorm(name="norm")(x)
        return Conv(self.features, 2, 2, use_bias=True, dtype=self.dtype, name="conv")(x)


class Stage(nn.Module):
    """Blocks of one resolution; every stage but the first begins by halving it."""

    features: int
    depth: int
    downsample: bool
    dtype: Any = jnp.float32
    remat: bool = False
    response_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None = None) -> jax.Array:
        """`scales` [depth, B] are of `drop_path_scales`, None drops nothing."""
        if self.downsample:
            x = Downsample(self.features, dtype=self.dtype, name="downsample")(x)
        for index in range(self.depth):
            block = ConvNeXtBlock(
                self.dtype, self.remat, self.response_norm, name=f"blocks_{index}"
            )
            x = block(x, None if scales is None else scales[index])
        return x


class Head(nn.Module):
    """Global average pooling -> norm -> linear (paper equation 3; the norm is ConvNeXt's)."""

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = features.mean(axis=(1, 2))
        x = LayerNorm(name="norm")(x)
        # Logits in float32, whatever the blocks compute in: softmax and loss need the digits.
        return Dense(self.num_classes, dtype=jnp.float32, name="fc")(x)


class ConvNeXt(nn.Module):
    """ConvNeXt classifier.

    Attributes:
        depths: blocks of each stage.
        dims: channels of each stage.
        num_classes: width of the classifier.
        drop_path_rate: drop path of the last block; it grows linearly from 0 at the first.
        dtype: compute dtype, float32 or bfloat16. Parameters are float32 always.
        remat: computes the wide activations of every block again for the gradients, which
            takes less memory and more multiplications.
        frozen: layers (keys of `layers`) that are not trained; of no effect: no norm has running
            statistics.
        response_norm: whether it is a ConvNeXt V2.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_classes: int
    drop_path_rate: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False
    frozen: frozenset[str] = frozenset()
    response_norm: bool = False

    fresh_prefixes = ("head/fc/",)  # parameters that ImageNet weights do not give
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
        """Address of each spatial convolution -> prefixes of the layer's parameters, in order."""
        layers: dict[str, tuple[str, ...]] = {"stem/conv": ("stem/",)}
        for stage, depth in enumerate(self.depths):
            if stage:
                layers[f"stages_{stage}/downsample/conv"] = (f"stages_{stage}/downsample/",)
            for index in range(depth):
                block = f"stages_{stage}/blocks_{index}"
                layers[f"{block}/depthwise"] = (f"{block}/",)
        return layers

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalised images [B, H, W, 3] -> features of the last stage [B, H/32, W/32, dims[-1]].

        With `train` and a drop path rate above 0 the rng stream 'drop_path' is needed.

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        height, width = images.shape[1:3]
        if height % TOTAL_STRIDE or width % TOTAL_STRIDE:
            raise ValueError(
                f"ConvNeXt needs image sides divisible by {TOTAL_STRIDE}; got {height}x{width}."
            )
        scales: Sequence[jax.Array | None] = [None] * len(self.depths)
        if train and self.drop_path_rate > 0:
            # Of all blocks at once: many small draws take longer to compile and to run.
            drawn = drop_path_scales(self.make_rng("drop_path"), self.drop_path_rates, len(images))
            scales = jnp.split(drawn, np.cumsum(self.depths)[:-1])
        x = self.stem(images)
        for stage, stage_scales in zip(self.stages, scales, strict=True):
            x = stage(x, stage_scales)
        return x

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalised images [B, H, W, 3] -> logits [B, num_classes], float32."""
        return self.head(self.features(images, train=train))


# Depths, widths and tag of the ImageNet-1k checkpoint that `imagenet.weights='default'` fetches
# from the Hugging Face hub: the full tag, because timm's bare names may mean another one
# (`convnext_tiny` is `in12k_ft_in1k`; the paper's is `fb_in1k`).
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
    """Registers a ConvNeXt, or a ConvNeXt V2 by a name that begins so."""
    build = functools.partial(ConvNeXt, depths, dims, response_norm=name.startswith("convnextv2"))
    register(name, build, family="convnext", weights=f"timm/{name}.{tag}")


for _size, (_depths, _dims, _tag) in _SIZES.items():
    register_convnext(f"convnext_{_size}", _depths, _dims, _tag)
    if _size != "small":  # there is no V2 of this size
        register_convnext(f"convnextv2_{_size}", _depths, _dims, "fcmae_ft_in1k")
