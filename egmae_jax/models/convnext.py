"""ConvNeXt (Liu et al. 2022; paper section 3.2, equations 1-3), equivalent to timm's.

ConvNeXt V2 (Woo et al. 2023) replaces the layer scale by global response normalization.

Arrays are channels-last. LayerNorm uses eps 1e-6, GELU is the exact one (erf), the classifier is
pool -> norm -> linear, and the drop-path rate grows linearly with depth. Submodules have timm's
names. On a CPU, the depthwise convolution, GELU and sums over pixels use the faster forms in
`egmae_jax.models.kernels`; on a TPU, a whole block is one of them.
"""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from egmae_jax.core.platform import materialize_gradient
from egmae_jax.models.convnext_names import OTHER_NAMES, patterns
from egmae_jax.models.kernels.block import convnext_block, is_supported
from egmae_jax.models.kernels.depthwise import depthwise_conv
from egmae_jax.models.layers import (
    KERNEL_STD,
    Conv,
    LayerNorm,
    Linear,
    Mlp,
    block_scales,
    is_tapped,
    kernel_init,
    scale_branch,
    tap,
)
from egmae_jax.models.layouts import DENSE, DENSE_AS_CONV
from egmae_jax.models.model import Model
from egmae_jax.models.registry import register

TOTAL_STRIDE = 32  # input pixels, along each side, per feature of the last stage

_KERNEL_SIZE = 7  # of depthwise convolutions


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
        return depthwise_conv(x.astype(self.dtype), kernel, bias)


def _mlp(block: "ConvNeXtBlock", x: jax.Array, *factors: jax.Array | None) -> jax.Array:
    return Mlp(4 * x.shape[-1], block.response_norm, block.dtype, name="mlp")(x, *factors)


def _is_fused(block: "ConvNeXtBlock", x: jax.Array) -> bool:
    """Whether fused kernels compute the block, whose intermediate values cannot be tapped."""
    is_plain = block.is_initializing() or is_tapped(block, "depthwise", "output")
    is_plain = is_plain or block.response_norm or x.dtype != block.dtype
    return not is_plain and is_supported(x, _KERNEL_SIZE)


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
        if _is_fused(self, x):
            return convnext_block(x, scales, self.variables["params"])
        channels = x.shape[-1]
        y = DepthwiseConv(_KERNEL_SIZE, self.dtype, name="conv_dw")(x)
        y = tap(self, y, "depthwise")
        y = LayerNorm(name="norm")(y)
        gamma = None
        if not self.response_norm:
            gamma = self.param("gamma", nn.initializers.constant(1e-6), (channels,))
        if self.remat:  # outside of it, since for the gradient of gamma the result is kept
            y = scale_branch(nn.remat(_mlp)(self, y), gamma, scales)
        else:
            y = _mlp(self, y, gamma, scales)
        return tap(self, x + y)


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
        x = materialize_gradient(features.mean(axis=(1, 2)))
        x = LayerNorm(name="norm")(x)
        # Logits are float32 for every compute dtype: softmax and loss need the precision.
        return Linear(self.num_classes, name="fc")(x)


class ConvNeXt(Model):
    """ConvNeXt classifier.

    Attributes:
        depths: number of blocks in each stage.
        dims: number of channels in each stage.
        response_norm: whether this is a ConvNeXt V2.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    response_norm: bool = False

    side_multiple = TOTAL_STRIDE
    block_parts = 2
    can_remat = True  # each MLP's activations
    can_pretrain = True

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

    @property
    def torch_modules(self) -> dict[str, str]:
        """Path of each block, and of each part of the stem and head, by its name in PyTorch."""
        modules = {"stem": "stem"}
        for stage, depth in enumerate(self.depths):
            if stage:
                modules[f"stages.{stage}.downsample"] = f"stages_{stage}/downsample"
            for index in range(depth):
                modules[f"stages.{stage}.blocks.{index}"] = f"stages_{stage}/blocks_{index}"
        return modules | {"head.norm": "head/norm", "head.fc": "head/fc"}

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Returns the standard deviation of a new variable, or None for a constant one."""
        del shape
        return KERNEL_STD if path.endswith("kernel") else None

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the last stage's features: images [B, H, W, 3] -> [B, H/32, W/32, dims[-1]]."""
        self.require_sides(images)
        scales = iter(block_scales(self, self.drop_path_rates, images.shape[0], train=train))
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x, list(itertools.islice(scales, stage.depth)))
        return x


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
    # In timm, the MLPs of these are 1x1 convolutions (`conv_mlp=True`).
    is_small = re.fullmatch(r"convnext(v2)?_(atto|femto|pico|nano)", name)
    register(
        name,
        functools.partial(ConvNeXt, depths, dims, response_norm=name.startswith("convnextv2")),
        weights=f"timm/{name}.{tag}",
        patterns=patterns(DENSE_AS_CONV if is_small else DENSE),
        library="timm",
        other_names=OTHER_NAMES,
    )


for _size, (_depths, _dims, _tag) in _SIZES.items():
    register_convnext(f"convnext_{_size}", _depths, _dims, _tag)
    if _size != "small":  # there is no V2 of this size
        register_convnext(f"convnextv2_{_size}", _depths, _dims, "fcmae_ft_in1k")
