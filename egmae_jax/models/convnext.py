"""ConvNeXt (Liu et al. 2022; paper section 3.2, equations 1-3), equivalent to timm's.

ConvNeXt V2 (Woo et al. 2023) replaces the layer scale by global response normalization.

Arrays are channels-last. LayerNorm uses eps 1e-6, GELU is the exact one (erf), the classifier is
pool -> norm -> linear, and the drop-path rate grows linearly with depth. Submodules have timm's
names. On a CPU, the depthwise
convolution, GELU and sums over pixels use the faster forms in `egmae_jax.models.kernels`.
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
from egmae_jax.models.kernels.block import convnext_block, is_supported
from egmae_jax.models.kernels.depthwise import depthwise_conv
from egmae_jax.models.layers import (
    KERNEL_STD,
    Conv,
    LayerNorm,
    Linear,
    Mlp,
    block_scales,
    group_layers,
    is_tapped,
    kernel_init,
    require_sides,
    scale_branch,
    tap,
)
from egmae_jax.models.layouts import CONV, DENSE, DENSE_AS_CONV, VECTOR, Layout
from egmae_jax.models.registry import OtherNames, Patterns, register

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
    """Whether kernels compute the block, which show nothing of what is within."""
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
        response_norm: whether this is a ConvNeXt V2.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_classes: int
    drop_path_rate: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False
    response_norm: bool = False

    fresh_prefixes = ("head/fc/",)  # parameters that ImageNet weights do not provide
    side_multiple = TOTAL_STRIDE
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
    def depth_groups(self) -> list[tuple[str, ...]]:
        """Path prefixes of the stem and of each block with the downsampling before it."""
        return group_layers(self.layers, 2)

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
        require_sides(self, images)
        scales = iter(block_scales(self, self.drop_path_rates, images.shape[0], train=train))
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x, list(itertools.islice(scales, stage.depth)))
        return x

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images [B, H, W, 3] -> float32 logits [B, num_classes]."""
        return self.head(self.features(images, train=train))


def _patterns(mlp: Layout) -> Patterns:
    """Returns timm's names; `mlp` is the layout of the MLPs' kernels."""
    return (
        (r"stem/conv/kernel", r"stem.0.weight", CONV),
        (r"stem/conv/bias", r"stem.0.bias", VECTOR),
        (r"stem/norm/scale", r"stem.1.weight", VECTOR),
        (r"stem/norm/bias", r"stem.1.bias", VECTOR),
        (r"stages_(\d+)/downsample/norm/scale", r"stages.\1.downsample.0.weight", VECTOR),
        (r"stages_(\d+)/downsample/norm/bias", r"stages.\1.downsample.0.bias", VECTOR),
        (r"stages_(\d+)/downsample/conv/kernel", r"stages.\1.downsample.1.weight", CONV),
        (r"stages_(\d+)/downsample/conv/bias", r"stages.\1.downsample.1.bias", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/gamma", r"stages.\1.blocks.\2.gamma", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/conv_dw/kernel", r"stages.\1.blocks.\2.conv_dw.weight", CONV),
        (r"stages_(\d+)/blocks_(\d+)/conv_dw/bias", r"stages.\1.blocks.\2.conv_dw.bias", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/norm/scale", r"stages.\1.blocks.\2.norm.weight", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/norm/bias", r"stages.\1.blocks.\2.norm.bias", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/(fc\d)/kernel", r"stages.\1.blocks.\2.mlp.\3.weight", mlp),
        (r"stages_(\d+)/blocks_(\d+)/(fc\d)/bias", r"stages.\1.blocks.\2.mlp.\3.bias", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/grn_scale", r"stages.\1.blocks.\2.mlp.grn.weight", VECTOR),
        (r"stages_(\d+)/blocks_(\d+)/grn_bias", r"stages.\1.blocks.\2.mlp.grn.bias", VECTOR),
        (r"head/norm/scale", r"head.norm.weight", VECTOR),
        (r"head/norm/bias", r"head.norm.bias", VECTOR),
        (r"head/fc/kernel", r"head.fc.weight", DENSE),
        (r"head/fc/bias", r"head.fc.bias", VECTOR),
    )


def _block(theirs: str, timms: str) -> tuple[tuple[str, str], ...]:
    """Returns the patterns of a ConvNeXt block in Facebook's and Hugging Face's names.

    Args:
        theirs: regular expression of the block's prefix there, with two groups.
        timms: replacement with the block's prefix in timm.
    """
    return (
        (rf"{theirs}\.(?:gamma|layer_scale_parameter)", rf"{timms}.gamma"),
        (rf"{theirs}\.dwconv\.(weight|bias)", rf"{timms}.conv_dw.\3"),
        (rf"{theirs}\.(?:norm|layernorm)\.(weight|bias)", rf"{timms}.norm.\3"),
        (rf"{theirs}\.pwconv([12])\.(weight|bias)", rf"{timms}.mlp.fc\3.\4"),
        (rf"{theirs}\.grn\.(?:gamma|weight)", rf"{timms}.mlp.grn.weight"),
        (rf"{theirs}\.grn\.(?:beta|bias)", rf"{timms}.mlp.grn.bias"),
    )


_HF = r"(?:convnext(?:v2)?\.)?"  # prefix of a classifier's backbone; a backbone alone has none
# By library. The shapes differ only by axes of length 1.
_OTHER_NAMES: OtherNames = {
    "Facebook's": (
        r"downsample_layers\.0\.0\.weight",
        (
            (r"downsample_layers\.0\.([01])\.(weight|bias)", r"stem.\1.\2"),
            (r"downsample_layers\.(\d+)\.([01])\.(weight|bias)", r"stages.\1.downsample.\2.\3"),
            *_block(r"stages\.(\d+)\.(\d+)", r"stages.\1.blocks.\2"),
            (r"norm\.(weight|bias)", r"head.norm.\1"),
            (r"head\.(weight|bias)", r"head.fc.\1"),
            # DINOv3 has norms of the stages before the last, which classification does not use, and
            # the last one twice.
            (r"norms\.\d+\.(weight|bias)", ""),
        ),
    ),
    "Hugging Face's": (
        rf"{_HF}embeddings\.patch_embeddings\.weight",
        (
            (rf"{_HF}embeddings\.patch_embeddings\.(weight|bias)", r"stem.0.\1"),
            (rf"{_HF}embeddings\.layernorm\.(weight|bias)", r"stem.1.\1"),
            (
                rf"{_HF}encoder\.stages\.(\d+)\.downsampling_layer\.([01])\.(weight|bias)",
                r"stages.\1.downsample.\2.\3",
            ),
            *_block(rf"{_HF}encoder\.stages\.(\d+)\.layers\.(\d+)", r"stages.\1.blocks.\2"),
            (rf"{_HF}layernorm\.(weight|bias)", r"head.norm.\1"),
            (r"classifier\.(weight|bias)", r"head.fc.\1"),
        ),
    ),
    "torchvision's": (
        r"features\.0\.0\.weight",
        (
            (r"features\.0\.([01])\.(weight|bias)", r"stem.\1.\2"),
            *(
                (rf"features\.{2 * i}\.([01])\.(weight|bias)", rf"stages.{i}.downsample.\1.\2")
                for i in (1, 2, 3)
            ),
            *(
                (rf"features\.{2 * i + 1}\.(\d+)\.{theirs}", rf"stages.{i}.blocks.\1.{timms}")
                for i in range(4)
                for theirs, timms in (
                    (r"layer_scale", "gamma"),
                    (r"block\.0\.(weight|bias)", r"conv_dw.\2"),
                    (r"block\.2\.(weight|bias)", r"norm.\2"),
                    (r"block\.3\.(weight|bias)", r"mlp.fc1.\2"),
                    (r"block\.5\.(weight|bias)", r"mlp.fc2.\2"),
                )
            ),
            (r"classifier\.0\.(weight|bias)", r"head.norm.\1"),
            (r"classifier\.2\.(weight|bias)", r"head.fc.\1"),
        ),
    ),
}

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
        patterns=_patterns(DENSE_AS_CONV if is_small else DENSE),
        library="timm",
        other_names=_OTHER_NAMES,
    )


for _size, (_depths, _dims, _tag) in _SIZES.items():
    register_convnext(f"convnext_{_size}", _depths, _dims, _tag)
    if _size != "small":  # there is no V2 of this size
        register_convnext(f"convnextv2_{_size}", _depths, _dims, "fcmae_ft_in1k")
