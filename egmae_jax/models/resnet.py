"""ResNet (He et al. 2016, table 1) with timm's and torchvision's exact semantics.

Channels are last. The stride of a bottleneck is in its 3x3 convolution ("v1.5"), as in both
libraries and unlike He et al. Submodules have the libraries' names, except the stem and the head:
`layer1_0/conv1` is `layer1.0.conv1` there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from egmae_jax.models.batch_norm import BatchNorm
from egmae_jax.models.layers import (
    Conv,
    ConvNorm,
    Head,
    below,
    block_scales,
    drop_path,
    fan_out_init,
    max_pool,
    tap,
)
from egmae_jax.models.layouts import CONV, DENSE, VECTOR
from egmae_jax.models.model import Model
from egmae_jax.models.registry import Patterns, register


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
    depth = 2  # number of convolutions of the branch

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Applies the block: [B, H, W, C] -> [B, H', W', expansion * features].

        Args:
            x: input features.
            scales: factors [B] of the branch from `block_scales`; None disables drop path.
            train: whether batch norms use and update the statistics of the batch.
        """
        outputs = self.features * self.expansion
        update = drop_path(self.branch(x, train=train), scales)
        if self.strides != 1 or x.shape[-1] != outputs:
            frozen = "downsample/conv" in self.frozen
            x = ConvNorm(
                outputs, 1, self.strides, frozen, self.dtype, fan_out_init, name="downsample"
            )(x, train=train)
        return tap(self, nn.relu(x + update))

    @nn.nowrap
    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Computes the residual, [B, H, W, C] -> [B, H', W', expansion * features]."""
        raise NotImplementedError

    @nn.nowrap
    def conv_norm(self, x: jax.Array, number: int, size: int, strides: int, train: bool) -> Any:
        """Applies the branch's convolution of a number and kernel size, and its norm."""
        is_last = number == self.depth
        x = Conv(
            self.features * (self.expansion if is_last else 1),
            size,
            strides,
            padding=size // 2,
            dtype=self.dtype,
            kernel_init=fan_out_init,
            name=f"conv{number}",
        )(x)
        return BatchNorm(
            f"conv{number}" in self.frozen,
            self.dtype,
            # New blocks are identities, as with timm's zero_init_last.
            nn.initializers.zeros if is_last else nn.initializers.ones,
            name=f"bn{number}",
        )(x, train=train)


class BasicBlock(ResidualBlock):
    """Block of two 3x3 convolutions (He et al. 2016, figure 5, left)."""

    @nn.nowrap
    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Computes the residual, [B, H, W, C] -> [B, H', W', features]."""
        x = nn.relu(self.conv_norm(x, 1, 3, self.strides, train))
        return self.conv_norm(x, 2, 3, 1, train)


class Bottleneck(ResidualBlock):
    """Block of 1x1, 3x3 and wider 1x1 convolutions (He et al. 2016, figure 5, right)."""

    expansion = 4
    depth = 3

    @nn.nowrap
    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Computes the residual, [B, H, W, C] -> [B, H', W', 4 * features]."""
        x = nn.relu(self.conv_norm(x, 1, 1, 1, train))
        x = nn.relu(self.conv_norm(x, 2, 3, self.strides, train))
        return self.conv_norm(x, 3, 1, 1, train)


class ResNet(Model):
    """ResNet classifier.

    Attributes:
        depths: number of blocks of each of the four stages.
        dims: number of channels of the 3x3 convolutions in each stage.
        bottleneck: whether the blocks are `Bottleneck` instead of `BasicBlock`.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    bottleneck: bool

    def setup(self):
        self.stem = ConvNorm(
            self.dims[0], 7, 2, "stem/conv" in self.frozen, self.dtype, fan_out_init
        )
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
                for number in range(1, self._block_type.depth + 1):
                    names.append((f"{block}/conv{number}", f"{block}/bn{number}"))
                if index == 0 and (stage > 1 or self._block_type.expansion > 1):
                    names.append((f"{block}/downsample/conv", f"{block}/downsample/bn"))
        return {conv: (f"{conv}/", f"{norm}/") for conv, norm in names}

    @property
    def torch_modules(self) -> dict[str, str]:
        """Path of the stem, each block and the classifier by its name in PyTorch."""
        blocks = [(stage, i) for stage, depth in enumerate(self.depths, 1) for i in range(depth)]
        modules = {f"layer{stage}.{index}": f"layer{stage}_{index}" for stage, index in blocks}
        return {"bn1": "stem", **modules, "fc": "head/fc"}

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Returns the standard deviation of a new variable, or None for a constant one."""
        if path == "head/fc/kernel":
            return (3 * shape[0]) ** -0.5
        if path.endswith("kernel"):  # those of an ASFF's linear layers are timm's default
            return (2 / (shape[0] * shape[1] * shape[3])) ** 0.5 if len(shape) == 4 else 0.02
        last_norm = f"bn{self._block_type.depth}/scale"
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
        scales = iter(block_scales(self, self.drop_path_rates, images.shape[0], train=train))
        x = nn.relu(self.stem(images, train=train))
        x = max_pool(x, padding=((1, 1), (1, 1)))
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x, next(scales), train=train)
            outputs.append(x)
        return tuple(outputs)

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the last stage: images [B, H, W, 3] -> [B, h, w, C] with h = ⌈H/32⌉."""
        return self.stages(images, train=train)[-1]


BACKBONE_PATTERNS: Patterns = (
    (r"stem/conv/kernel", r"conv1.weight", CONV),
    (r"stem/bn/scale", r"bn1.weight", VECTOR),
    (r"stem/bn/bias", r"bn1.bias", VECTOR),
    (r"stem/bn/(mean|var)", r"bn1.running_\1", VECTOR),
    (r"(layer\d)_(\d+)/(conv\d)/kernel", r"\1.\2.\3.weight", CONV),
    (r"(layer\d)_(\d+)/(bn\d)/scale", r"\1.\2.\3.weight", VECTOR),
    (r"(layer\d)_(\d+)/(bn\d)/bias", r"\1.\2.\3.bias", VECTOR),
    (r"(layer\d)_(\d+)/(bn\d)/(mean|var)", r"\1.\2.\3.running_\4", VECTOR),
    (r"(layer\d)_(\d+)/downsample/conv/kernel", r"\1.\2.downsample.0.weight", CONV),
    (r"(layer\d)_(\d+)/downsample/bn/scale", r"\1.\2.downsample.1.weight", VECTOR),
    (r"(layer\d)_(\d+)/downsample/bn/bias", r"\1.\2.downsample.1.bias", VECTOR),
    (r"(layer\d)_(\d+)/downsample/bn/(mean|var)", r"\1.\2.downsample.1.running_\3", VECTOR),
)
_PATTERNS = (
    *BACKBONE_PATTERNS,
    (r"head/fc/kernel", r"fc.weight", DENSE),
    (r"head/fc/bias", r"fc.bias", VECTOR),
)

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
    build, weights = functools.partial(ResNet, *sizes), f"timm/{name}.tv_in1k"
    register(name, build, weights=weights, patterns=_PATTERNS, library="timm")


for _name, _sizes in RESNETS.items():
    register_resnet(_name, _sizes)
