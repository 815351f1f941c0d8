"""ResNet (He et al. 2016; paper table 1) with timm's and torchvision's exact semantics.

Channels are last. The stride of a bottleneck is in its 3x3 convolution ("v1.5"), as in both
libraries and unlike the paper. Submodules have the libraries' names, except the stem and the head:
`layer1_0/conv1` is `layer1.0.conv1` there.
"""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from egmae_jax.models.batch_norm import BatchNorm
from egmae_jax.models.convnext import drop_path_scales
from egmae_jax.models.layers import Conv, ConvNorm, below, max_pool, tap
from egmae_jax.models.registry import register

# As timm: kaiming_normal_(mode="fan_out") for convolutions. The classifier has the standard
# deviation of nn.Linear's uniform distribution, but is drawn from a normal one, with bias 0.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
fc_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "normal")


class ResidualBlock(nn.Module):
    """Base class of both kinds of blocks: relu(shortcut(x) + drop_path(branch(x))).

    Attributes:
        features: number of channels of the 3x3 convolutions; the output has `expansion` times as
            many.
        strides: stride of the block along both axes.
        frozen: convolutions of this block whose norm is frozen, such as 'conv1'.
        dtype: compute dtype.
    """

    features: int
    strides: int = 1
    frozen: frozenset[str] = frozenset()
    dtype: Any = jnp.float32

    expansion = 1
    kernel_sizes: ClassVar[tuple[int, ...]] = (3, 3)  # of the branch's convolutions

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Applies the block: [B, H, W, C] -> [B, H', W', expansion * features].

        Args:
            x: input features.
            scales: factors [B] of the branch from `drop_path_scales`; None disables drop path.
            train: whether batch norms use and update the statistics of the batch.
        """
        outputs, last = self.features * self.expansion, len(self.kernel_sizes)
        strided = self.kernel_sizes.index(3) + 1
        update = x
        for index, size in enumerate(self.kernel_sizes, 1):
            update = Conv(
                outputs if index == last else self.features,
                size,
                self.strides if index == strided else 1,
                padding=size // 2,
                dtype=self.dtype,
                kernel_init=conv_init,
                name=f"conv{index}",
            )(update)
            update = BatchNorm(
                f"conv{index}" in self.frozen,
                self.dtype,
                # New blocks are identities, as with timm's zero_init_last.
                nn.initializers.zeros if index == last else nn.initializers.ones,
                name=f"bn{index}",
            )(update, train=train)
            if index < last:
                update = nn.relu(update)
        if scales is not None:
            update *= scales[:, None, None, None].astype(update.dtype)
        if self.strides != 1 or x.shape[-1] != outputs:
            frozen = "downsample/conv" in self.frozen
            x = ConvNorm(
                outputs, 1, self.strides, frozen, self.dtype, conv_init, name="downsample"
            )(x, train=train)
        return tap(self, nn.relu(x + update))


class BasicBlock(ResidualBlock):
    """Block of two 3x3 convolutions (paper figure 5, left)."""


class Bottleneck(ResidualBlock):
    """Block of 1x1, 3x3 and 1x1 convolutions, the last one wider (paper figure 5, right)."""

    expansion = 4
    kernel_sizes = (1, 3, 1)


class Head(nn.Module):
    """Global average pooling and a linear layer, in float32."""

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Computes the logits: [B, h, w, C] -> [B, num_classes]."""
        x = features.astype(jnp.float32).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=fc_init, name="fc")(x)


class ResNet(nn.Module):
    """ResNet classifier.

    Attributes:
        depths: number of blocks of each of the four stages.
        dims: number of channels of the 3x3 convolutions in each stage.
        bottleneck: whether the blocks are `Bottleneck` instead of `BasicBlock`.
        num_classes: number of classes.
        drop_path_rate: drop-path rate of the last block; it grows linearly from 0 at the first.
        dtype: compute dtype, float32 or bfloat16. Parameters are always float32.
        frozen: layers (keys of `layers`) whose norm keeps its running statistics in training.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    bottleneck: bool
    num_classes: int
    drop_path_rate: float = 0.0
    dtype: Any = jnp.float32
    frozen: frozenset[str] = frozenset()

    # Parameters that ImageNet weights do not contain.
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head/fc/",)
    stride = 32  # input pixels per feature of the last stage, along each axis
    min_size = 32  # smallest side of an image in pixels
    needs_multiple = False

    def setup(self):
        self.stem = ConvNorm(self.dims[0], 7, 2, "stem/conv" in self.frozen, self.dtype, conv_init)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            [
                self._block_type(
                    features,
                    2 if stage > 1 and index == 0 else 1,
                    below(self.frozen, f"layer{stage}_{index}"),
                    self.dtype,
                )
                for index in range(depth)
            ]
            for stage, (features, depth) in enumerate(zip(self.dims, self.depths, strict=True), 1)
        )
        self.head = Head(self.num_classes)

    @property
    def _block_type(self) -> type[ResidualBlock]:
        return Bottleneck if self.bottleneck else BasicBlock

    @property
    def drop_path_rates(self) -> np.ndarray:
        """Drop-path rate of each block, float [num_blocks], linear in depth."""
        return np.linspace(0.0, self.drop_path_rate, sum(self.depths))

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Path prefixes of each layer (convolution and norm) by address, from input to output."""
        names = [("stem/conv", "stem/bn")]
        for stage, depth in enumerate(self.depths, 1):
            for index in range(depth):
                block = f"layer{stage}_{index}"
                for number in range(1, len(self._block_type.kernel_sizes) + 1):
                    names.append((f"{block}/conv{number}", f"{block}/bn{number}"))
                if index == 0 and (stage > 1 or self._block_type.expansion > 1):
                    names.append((f"{block}/downsample/conv", f"{block}/downsample/bn"))
        return {conv: (f"{conv}/", f"{norm}/") for conv, norm in names}

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Returns the standard deviation of a new variable around 0, or None for a constant one.

        Args:
            path: path of the variable.
            shape: shape of the variable.
        """
        if path == "head/fc/kernel":
            return (3 * shape[0]) ** -0.5
        if path.endswith("kernel"):  # those of an ASFF's linear layers are timm's default
            return (2 / (shape[0] * shape[1] * shape[3])) ** 0.5 if len(shape) == 4 else 0.02
        last_norm = f"bn{len(self._block_type.kernel_sizes)}/scale"
        return 0.0 if path.startswith("layer") and path.endswith(last_norm) else None

    def stages(self, images: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        """Computes the feature maps of the four stages, at strides 4, 8, 16 and 32.

        Args:
            images: normalised images [B, H, W, 3].
            train: whether to use batch statistics and drop path. If `drop_path_rate` is above 0,
                this needs the rng stream 'drop_path'.

        Returns:
            Feature maps [B, h, w, C].
        """
        scales: Any = [None] * sum(self.depths)
        if train and self.drop_path_rate > 0:
            scales = drop_path_scales(self.make_rng("drop_path"), self.drop_path_rates, len(images))
        x = nn.relu(self.stem(images, train=train))
        x = max_pool(x, padding=((1, 1), (1, 1)))
        outputs, number = [], 0
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x, scales[number], train=train)
                number += 1
            outputs.append(x)
        return tuple(outputs)

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the last stage: images [B, H, W, 3] -> [B, h, w, C] with h = ⌈H/32⌉."""
        return self.stages(images, train=train)[-1]

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the logits: normalised images [B, H, W, 3] -> float32 [B, num_classes]."""
        return self.head(self.features(images, train=train))


# Depths, channels, and whether the blocks are bottlenecks. The ImageNet weights are torchvision's
# first version, which the papers of the recipes used.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), (64, 128, 256, 512), False),
    "resnet34": ((3, 4, 6, 3), (64, 128, 256, 512), False),
    "resnet50": ((3, 4, 6, 3), (64, 128, 256, 512), True),
}


def register_resnet(name: str, sizes: tuple) -> None:
    """Registers a ResNet.

    Args:
        name: name of the network.
        sizes: depths, channels and kind of block, as in `RESNETS`.
    """
    build = functools.partial(ResNet, *sizes)
    register(name, build, family="resnet", weights=f"timm/{name}.tv_in1k")


for _name, _sizes in RESNETS.items():
    register_resnet(_name, _sizes)
