"""EfficientNet-B0 and -Lite0 (Tan and Le 2019) with timm's exact semantics.

Channels are last. Modules have timm's names: `blocks_1_0/conv_dw` is `blocks.1.0.conv_dw` there.
Lite0 (`tf_efficientnet_lite0`) has no squeeze-and-excitation, ReLU6 instead of SiLU, TensorFlow's
padding and batch norms of epsilon 1e-3, and its weights expect images with mean and standard
deviation .5.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from egmae_jax.models.batch_norm import BatchNorm
from egmae_jax.models.kernels.depthwise import strided_depthwise_conv
from egmae_jax.models.layers import (
    Conv,
    Head,
    below,
    block_scales,
    drop_path,
    fan_out_init,
    tap,
)
from egmae_jax.models.layouts import CONV, DENSE, DENSE_AS_CONV, VECTOR
from egmae_jax.models.model import IMAGENET, INCEPTION, Model, Normalization
from egmae_jax.models.registry import register


class Stage(NamedTuple):
    """Equal blocks, of which the first one may have a stride."""

    depth: int  # number of blocks
    kernel_size: int  # side of the depthwise kernels in pixels
    strides: int  # of the first block
    expansion: int  # ratio of the channels of the depthwise convolutions to those of the input
    features: int  # number of output channels


STAGES = (  # Tan and Le 2019, table 1
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_FEATURES, HEAD_FEATURES = 32, 1280
# The standard deviation of timm's uniform distribution, but a normal one.
fc_init = nn.initializers.variance_scaling(1 / 3, "fan_out", "normal")


def depthwise_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draws a depthwise kernel [K, K, 1, C] as `fan_out_init` does for one channel."""
    return (2 / (shape[0] * shape[1])) ** 0.5 * jax.random.normal(key, shape, dtype)


def padding_before(side: int, kernel_size: int, strides: int, *, same: bool) -> int:
    """Returns the number of zeros before the first pixel of an axis.

    Args:
        side: number of pixels.
        kernel_size: side of the kernel, odd.
        strides: 1 or 2.
        same: whether padding is TensorFlow's 'SAME', of as few zeros as the outputs need, of which
            an odd one comes after the last pixel. PyTorch's is symmetric.
    """
    if not same:
        return kernel_size // 2
    return max((-(-side // strides) - 1) * strides + kernel_size - side, 0) // 2


class DepthwiseConv(nn.Module):
    """Depthwise convolution without bias to ⌈side / strides⌉ pixels, and a `tap` on its output.

    Attributes:
        kernel_size: side of the square kernel in pixels, odd.
        strides: step along both axes, 1 or 2.
        same: see `padding_before`.
        dtype: compute dtype.
    """

    kernel_size: int
    strides: int = 1
    same: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', C]."""
        size = self.kernel_size
        kernel = self.param("kernel", depthwise_init, (size, size, 1, x.shape[-1]))
        before = [padding_before(n, size, self.strides, same=self.same) for n in x.shape[1:3]]
        kernel = kernel.astype(self.dtype)
        return tap(self, strided_depthwise_conv(x.astype(self.dtype), kernel, self.strides, before))


class SqueezeExcite(nn.Module):
    """Scales channels by a gate that is computed from their means (Hu et al. 2018).

    Attributes:
        hidden: number of channels between the two linear layers.
        dtype: compute dtype.
    """

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""

        def linear(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=fan_out_init, name=name)

        mean = x.astype(jnp.float32).mean(axis=(1, 2))
        gate = linear(x.shape[-1], "conv_expand")(nn.silu(linear(self.hidden, "conv_reduce")(mean)))
        return x * nn.sigmoid(gate)[:, None, None]


class Block(nn.Module):
    """Inverted residual: expansion, depthwise convolution, gate, projection (Sandler et al. 2018).

    Attributes:
        stage: sizes of the block; without expansion there is no first convolution.
        strides: stride of the depthwise convolution.
        lite: whether this is a block of Lite0.
        frozen: convolutions of this block whose norm is frozen, such as 'conv_dw'.
        dtype: compute dtype.
    """

    stage: Stage
    strides: int
    lite: bool
    frozen: frozenset[str] = frozenset()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Applies the block: [B, H, W, C] -> [B, H', W', features].

        Args:
            x: input features.
            scales: factors [B] of the branch from `block_scales`; None disables drop path.
            train: whether batch norms use and update the statistics of the batch.
        """
        inputs, (_, size, _, expansion, features) = x.shape[-1], self.stage
        activation = _activation(self.lite)
        convs = convolutions(self.stage)
        *expand, depthwise, project = convs  # `expand` is empty in a block without expansion

        def norm(y: jax.Array, conv: str) -> jax.Array:
            name = f"bn{convs.index(conv) + 1}"
            return _norm(conv in self.frozen, self.lite, self.dtype, name)(y, train=train)

        def pointwise(y: jax.Array, conv: str, features: int) -> jax.Array:
            layer = Conv(features, 1, dtype=self.dtype, kernel_init=fan_out_init, name=conv)
            return norm(layer(y), conv)

        y = x
        for name in expand:
            y = activation(pointwise(y, name, inputs * expansion))
        y = DepthwiseConv(size, self.strides, self.lite, self.dtype, name=depthwise)(y)
        y = activation(norm(y, depthwise))
        if not self.lite:
            y = SqueezeExcite(max(1, inputs // 4), self.dtype, name="se")(y)
        y = pointwise(y, project, features)
        if self.strides == 1 and inputs == features:
            y = x + drop_path(y, scales)
        return tap(self, y)


def convolutions(stage: Stage) -> tuple[str, ...]:
    """Returns timm's names of the convolutions of a block, from input to output."""
    return ("conv_pw", "conv_dw", "conv_pwl") if stage.expansion > 1 else ("conv_dw", "conv_pw")


def _activation(lite: bool) -> Any:
    return nn.relu6 if lite else nn.silu


def _norm(frozen: bool, lite: bool, dtype: Any, name: str | None = None) -> BatchNorm:
    return BatchNorm(frozen, dtype, epsilon=1e-3 if lite else 1e-5, name=name)


class EfficientNet(Model):
    """EfficientNet classifier.

    Attributes:
        lite: whether this is Lite0 instead of B0.
        sizes: sizes of the stages.
    """

    lite: bool
    sizes: tuple[Stage, ...] = STAGES

    def setup(self):
        padding = 0 if self.lite else 1  # `features` pads as TensorFlow does
        self.conv_stem = Conv(
            STEM_FEATURES, 3, 2, padding, dtype=self.dtype, kernel_init=fan_out_init
        )
        self.bn1 = _norm("conv_stem" in self.frozen, self.lite, self.dtype)
        self.blocks = [
            [
                Block(
                    stage,
                    1 if index else stage.strides,
                    self.lite,
                    below(self.frozen, f"blocks_{number}_{index}"),
                    self.dtype,
                )
                for index in range(stage.depth)
            ]
            for number, stage in enumerate(self.sizes)
        ]
        self.conv_head = Conv(HEAD_FEATURES, 1, dtype=self.dtype, kernel_init=fan_out_init)
        self.bn2 = _norm("conv_head" in self.frozen, self.lite, self.dtype)
        self.head = Head(self.num_classes, fc_init)

    @property
    def drop_path_rates(self) -> np.ndarray:
        """Drop-path rate of each block, float [num_blocks], linear in depth.

        As in timm, `drop_path_rate` is that of the block that would follow the last one.
        """
        depth = sum(stage.depth for stage in self.sizes)
        return self.drop_path_rate * np.arange(depth) / depth

    @property
    def _block_names(self) -> dict[str, Stage]:
        return {
            f"blocks_{number}_{index}": stage
            for number, stage in enumerate(self.sizes)
            for index in range(stage.depth)
        }

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Path prefixes of each layer's parameters by address, from input to output.

        A layer is a convolution, its norm and, of a depthwise one, the gate behind it.
        """
        layers: dict[str, tuple[str, ...]] = {"conv_stem": ("conv_stem/", "bn1/")}
        for block, stage in self._block_names.items():
            for number, conv in enumerate(convolutions(stage), 1):
                gate = () if self.lite or conv != "conv_dw" else (f"{block}/se/",)
                layers[f"{block}/{conv}"] = (f"{block}/{conv}/", f"{block}/bn{number}/", *gate)
        return layers | {"conv_head": ("conv_head/", "bn2/")}

    @property
    def depth_groups(self) -> list[tuple[str, ...]]:
        """Path prefixes of the stem and of each block, the last one with the last convolution."""
        *groups, last, end = super().depth_groups
        return [*groups, last + end]

    @property
    def torch_modules(self) -> dict[str, str]:
        """Path of both single convolutions, each block and the classifier by its name in timm."""
        blocks = {f"blocks.{name[7:].replace('_', '.')}": name for name in self._block_names}
        ends = {"conv_head": "conv_head", "classifier": "head/fc"}
        return {"conv_stem": "conv_stem", **blocks, **ends}

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Returns the standard deviation of a new variable, or None for a constant one."""
        if path == "head/fc/kernel":
            return (3 * shape[-1]) ** -0.5
        if not path.endswith("kernel"):
            return None
        outputs = 1 if path.endswith("conv_dw/kernel") else shape[-1]
        return (2 / (np.prod(shape[:-2], dtype=int) * outputs)) ** 0.5

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the last feature map: images [B, H, W, 3] -> [B, ⌈H/32⌉, ⌈W/32⌉, 1280]."""
        scales = block_scales(self, self.drop_path_rates, images.shape[0], train=train)
        activation = _activation(self.lite)
        x = self.converted(images)
        if self.lite:
            before = [padding_before(side, 3, 2, same=True) for side in x.shape[1:3]]
            x = jnp.pad(x, ((0, 0), *((n, 1) for n in before), (0, 0)))
        x = activation(self.bn1(self.conv_stem(x), train=train))
        for block, factors in zip(itertools.chain(*self.blocks), scales, strict=True):
            x = block(x, factors, train=train)
        return activation(self.bn2(self.conv_head(x), train=train))


_PATTERNS = (
    (r"(conv_\w+)/kernel", r"\1.weight", CONV),
    (r"(bn\d)/scale", r"\1.weight", VECTOR),
    (r"(bn\d)/bias", r"\1.bias", VECTOR),
    (r"(bn\d)/(mean|var)", r"\1.running_\2", VECTOR),
    (r"blocks_(\d+)_(\d+)/(conv_\w+)/kernel", r"blocks.\1.\2.\3.weight", CONV),
    (r"blocks_(\d+)_(\d+)/(bn\d)/scale", r"blocks.\1.\2.\3.weight", VECTOR),
    (r"blocks_(\d+)_(\d+)/(bn\d)/bias", r"blocks.\1.\2.\3.bias", VECTOR),
    (r"blocks_(\d+)_(\d+)/(bn\d)/(mean|var)", r"blocks.\1.\2.\3.running_\4", VECTOR),
    (r"blocks_(\d+)_(\d+)/se/(conv_\w+)/kernel", r"blocks.\1.\2.se.\3.weight", DENSE_AS_CONV),
    (r"blocks_(\d+)_(\d+)/se/(conv_\w+)/bias", r"blocks.\1.\2.se.\3.bias", VECTOR),
    (r"head/fc/kernel", r"classifier.weight", DENSE),
    (r"head/fc/bias", r"classifier.bias", VECTOR),
)


def _lukemelas_names() -> tuple[tuple[str, str], ...]:
    """Returns the names in the library EfficientNet-PyTorch, which numbers blocks throughout."""
    ends = (("conv_stem", "conv_stem"), ("bn0", "bn1"), ("conv_head", "conv_head"), ("bn1", "bn2"))
    names = [
        (rf"_{theirs}\.(\w+)", rf"{timms}.\1") for theirs, timms in (*ends, ("fc", "classifier"))
    ]
    parts = ("expand_conv", "bn0", "depthwise_conv", "bn1", "project_conv", "bn2")
    blocks = [(i, j, stage) for i, stage in enumerate(STAGES) for j in range(stage.depth)]
    for number, (i, j, stage) in enumerate(blocks):
        convs = convolutions(stage)
        timms = [name for k, conv in enumerate(convs, 1) for name in (conv, f"bn{k}")]
        for theirs, name in zip(parts[-len(timms) :], timms, strict=True):
            names.append((rf"_blocks\.{number}\._{theirs}\.(\w+)", rf"blocks.{i}.{j}.{name}.\1"))
        gate = rf"_blocks\.{number}\._se_(reduce|expand)\.(\w+)"
        names.append((gate, rf"blocks.{i}.{j}.se.conv_\1.\2"))
    return tuple(names)


_OTHER_NAMES = {"EfficientNet-PyTorch's": (r"_conv_stem\.weight", _lukemelas_names())}
# (whether it is Lite0, tag of timm's default weights, normalisation that they expect) by name.
_NETWORKS = {
    "efficientnet_b0": (False, "ra_in1k", IMAGENET),
    "tf_efficientnet_lite0": (True, "in1k", INCEPTION),
}


def register_efficientnet(name: str, lite: bool, tag: str, normalization: Normalization) -> None:
    """Registers an EfficientNet; the arguments are as in `_NETWORKS`."""
    register(
        name,
        functools.partial(EfficientNet, lite),
        weights=f"timm/{name}.{tag}",
        patterns=_PATTERNS,
        library="timm",
        normalization=normalization,
        other_names=_OTHER_NAMES,
    )


for _name, _entry in _NETWORKS.items():
    register_efficientnet(_name, *_entry)
