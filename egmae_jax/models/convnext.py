"""ConvNeXt (Liu et al. 2022; paper section 3.2, equations 1-3) with timm's exact semantics.

And ConvNeXt V2 (Woo et al. 2023): global response normalization in place of the layer scale.

Channels last throughout. LayerNorm has eps 1e-6, GELU is the exact one (erf), the classifier is
pool -> norm -> linear, drop path grows linearly with depth. Submodules carry timm's names, so that
`egmae_jax.models.timm` is a table of patterns.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from egmae_jax.core.platform import materialize
from egmae_jax.models.kernels.depthwise import depthwise_conv
from egmae_jax.models.kernels.mlp import Perceptron, perceptron
from egmae_jax.models.kernels.operations import layer_norm, linear
from egmae_jax.models.layers import tap
from egmae_jax.models.module import Module
from egmae_jax.models.registry import register

TOTAL_STRIDE = 32  # input pixels, along each side, per feature of the last stage

# timm draws kernels by trunc_normal_(std=0.02), which truncates at +-2, not at two standard
# deviations: a plain normal for all purposes. Biases are zeros.
kernel_init = nn.initializers.normal(0.02)


class PatchConv(Module):
    """Convolution whose stride is its kernel size: the stem (4x4) and the downsampling (2x2).

    Patches do not overlap, so it is one matrix product over flattened patches.
    """

    features: int
    patch_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        p = self.patch_size
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", kernel_init, (p, p, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        patches = x.astype(self.dtype).reshape(batch, height // p, p, width // p, p, channels)
        # Else they would be copied again for the kernel's gradient.
        patches = materialize(patches.swapaxes(2, 3).reshape(-1, p * p * channels))
        y = linear(
            patches,
            kernel.reshape(-1, self.features).astype(self.dtype),
            bias.astype(self.dtype),
        )
        return tap(self, y.reshape(batch, height // p, width // p, self.features))


def drop_path_scales(key: jax.Array, rates: jax.typing.ArrayLike, batch: int) -> jax.Array:
    """Stochastic depth: what the residual branches of a batch are multiplied by.

    A branch is dropped for whole examples, each with the block's rate, and scaled up for the kept
    ones, so that its expectation stays.

    Args:
        key: of this step.
        rates: [L], in [0, 1), one a block.
        batch: number of examples B.

    Returns:
        [L, B], float32: 0 or 1 / (1 - rate), all drawn independently.
    """
    keep = 1.0 - jnp.asarray(rates, jnp.float32)[:, None]
    # Else every block computes its row by a program of its own.
    return materialize(jax.random.bernoulli(key, keep, (len(keep), batch)) / keep)


class DepthwiseParams(Module):
    """Declares what a depthwise convolution needs, 7x7 with bias."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Kernel [7, 7, 1, channels] and bias [channels]."""
        return (
            self.param("kernel", kernel_init, (7, 7, 1, channels)),
            self.param("bias", nn.initializers.zeros, (channels,)),
        )


class Linear(Module):
    """x @ kernel + bias, of the channels."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def declare(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Kernel [channels, features] and bias [features]."""
        return (
            self.param("kernel", kernel_init, (channels, self.features)),
            self.param("bias", nn.initializers.zeros, (self.features,)),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., features], in `dtype`."""
        channels = x.shape[-1]
        rows, kernel, bias = (
            leaf.astype(self.dtype) for leaf in (x.reshape(-1, channels), *self.declare(channels))
        )
        return linear(rows, kernel, bias).reshape(*x.shape[:-1], self.features)


class LayerNorm(Module):
    """Normalizes the channels of every pixel, with eps 1e-6."""

    @nn.compact
    def declare(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Scale and bias, both [channels]; a block that computes several layers needs no more."""
        return (
            self.param("scale", nn.initializers.ones, (channels,)),
            self.param("bias", nn.initializers.zeros, (channels,)),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> the same."""
        return layer_norm(x, *self.declare(x.shape[-1]))


class ConvNeXtBlock(Module):
    """x + drop_path(gamma * fc2(gelu(fc1(norm(conv_dw(x)))))): paper equations 1 and 2.

    With `response_norm` it is V2's: x + drop_path(fc2(grn(gelu(fc1(norm(conv_dw(x))))))).
    """

    dtype: Any = jnp.float32
    rematerialize: bool = False
    response_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None = None, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> the same; `scales` [B] are of `drop_path_scales`, None drops nothing."""
        channels = x.shape[-1]
        kernel, bias = DepthwiseParams(name="conv_dw")(channels)
        params = Perceptron(
            *LayerNorm(name="norm").declare(channels),
            *Linear(4 * channels, name="fc1").declare(channels),
            *Linear(channels, name="fc2").declare(4 * channels),
        )
        if self.response_norm:
            zeros = nn.initializers.zeros
            params = params._replace(
                grn_scale=self.param("grn_scale", zeros, (4 * channels,)),
                grn_bias=self.param("grn_bias", zeros, (4 * channels,)),
            )
        else:
            gamma = self.param("gamma", nn.initializers.constant(1e-6), (channels,))
            params = params._replace(gamma=gamma)
        if self.is_initializing():
            return x  # of the same shape; to trace the rest would take most of the time
        update = depthwise_conv(*(leaf.astype(self.dtype) for leaf in (x, kernel, bias)))
        update = tap(self, update, "depthwise")
        x = perceptron(update, params, x, scales, train=train, rematerialize=self.rematerialize)
        return tap(self, x)


class Stem(nn.Module):
    """4x4 patches of the image, embedded and normalised."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = PatchConv(self.features, patch_size=4, dtype=self.dtype, name="conv")(images)
        return LayerNorm(name="norm")(x)


class Downsample(nn.Module):
    """Halves the resolution between stages: norm, then 2x2 convolution with stride 2."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = LayerNorm(name="norm")(x)
        return PatchConv(self.features, patch_size=2, dtype=self.dtype, name="conv")(x)


class Stage(nn.Module):
    """Blocks of one resolution; every stage but the first begins by halving it."""

    features: int
    depth: int
    downsample: bool
    dtype: Any = jnp.float32
    rematerialize: bool = False
    response_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None = None, *, train: bool) -> jax.Array:
        """`scales` [depth, B] are of `drop_path_scales`, None drops nothing."""
        if self.downsample:
            x = Downsample(self.features, dtype=self.dtype, name="downsample")(x)
        for index in range(self.depth):
            block = ConvNeXtBlock(
                self.dtype, self.rematerialize, self.response_norm, name=f"blocks_{index}"
            )
            x = block(x, None if scales is None else scales[index], train=train)
        return x


class Head(nn.Module):
    """Global average pooling -> norm -> linear (paper equation 3; the norm is ConvNeXt's)."""

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = features.mean(axis=(1, 2))
        x = LayerNorm(name="norm")(x)
        # Logits in float32, whatever the blocks compute in: softmax and loss need the digits.
        return Linear(self.num_classes, name="fc")(x)


class ConvNeXt(nn.Module):
    """ConvNeXt classifier.

    Attributes:
        depths: blocks of each stage.
        dims: channels of each stage.
        num_classes: width of the classifier.
        drop_path_rate: drop path of the last block; it grows linearly from 0 at the first.
        dtype: compute dtype, float32 or bfloat16. Parameters are float32 always.
        rematerialize: computes the wide activations of every block again for the gradients, which
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
    rematerialize: bool = False
    frozen: frozenset[str] = frozenset()
    response_norm: bool = False

    fresh_prefixes = ("head/fc/",)  # parameters that ImageNet weights do not give
    stride = TOTAL_STRIDE
    min_size = TOTAL_STRIDE  # of image sides,
    needs_multiple = True  # which must be multiples of the stride

    def setup(self):
        self.stem = Stem(self.dims[0], dtype=self.dtype)
        self.stages = [
            Stage(features, depth, index > 0, self.dtype, self.rematerialize, self.response_norm)
            for index, (features, depth) in enumerate(zip(self.dims, self.depths, strict=True))
        ]
        self.head = Head(self.num_classes)

    @property
    def drop_path_rates(self) -> np.ndarray:
        """Of every block."""
        return np.linspace(0.0, self.drop_path_rate, sum(self.depths))

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Address of each spatial convolution -> prefixes of the layer's parameters, in order."""
        found: dict[str, tuple[str, ...]] = {"stem/conv": ("stem/",)}
        for stage, depth in enumerate(self.depths):
            if stage:
                found[f"stages_{stage}/downsample/conv"] = (f"stages_{stage}/downsample/",)
            for index in range(depth):
                block = f"stages_{stage}/blocks_{index}"
                found[f"{block}/depthwise"] = (f"{block}/",)
        return found

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
            x = stage(x, stage_scales, train=train)
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
    if _size != "small":  # of which there is no V2
        register_convnext(f"convnextv2_{_size}", _depths, _dims, "fcmae_ft_in1k")
