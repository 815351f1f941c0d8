"""DenseNet-121 (Huang et al. 2017) with timm's and torchvision's exact semantics.

Channels are last. Modules have the libraries' names without the prefix `features`:
`denseblock1/denselayer2/conv1` is `features.denseblock1.denselayer2.conv1` there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from egmae_jax.core.platform import materialize
from egmae_jax.models.batch_norm import BatchNorm
from egmae_jax.models.layers import Conv, Head, below, fan_in_init, max_pool, tap
from egmae_jax.models.layouts import CONV, DENSE, VECTOR, Layout
from egmae_jax.models.model import Model
from egmae_jax.models.registry import Patterns, register

BOTTLENECK = 4  # channels between both convolutions of a layer, as a multiple of the growth rate


class NormConv(nn.Module):
    """Batch norm, ReLU and a convolution without bias, whose names end with the same number.

    Its parameters `norm<number>` and `conv<number>` lie in the scope of the enclosing module.

    Attributes:
        features: number of output channels.
        kernel_size: side of the square kernel in pixels, odd; the spatial size stays the same.
        number: end of the names of both, such as '1'.
        frozen: whether the norm is frozen.
        dtype: compute dtype.
    """

    features: int
    kernel_size: int
    number: str = ""
    frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        if isinstance(self.parent, nn.Module):  # unless it is used by itself
            nn.share_scope(self.parent, self)
        x = BatchNorm(self.frozen, self.dtype, name=f"norm{self.number}")(x, train=train)
        return Conv(
            self.features,
            self.kernel_size,
            padding=self.kernel_size // 2,
            dtype=self.dtype,
            kernel_init=fan_in_init,
            name=f"conv{self.number}",
        )(nn.relu(x))


class DenseLayer(nn.Module):
    """Computes new channels from all previous ones of its block (DenseNet-B, Huang et al. 2017).

    Attributes:
        growth_rate: number of new channels.
        frozen: convolutions whose norm is frozen, such as 'conv1'.
        dtype: compute dtype.
    """

    growth_rate: int
    frozen: frozenset[str] = frozenset()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, growth_rate]."""
        for number, features, size in (
            ("1", BOTTLENECK * self.growth_rate, 1),
            ("2", self.growth_rate, 3),
        ):
            frozen = f"conv{number}" in self.frozen
            x = NormConv(features, size, number, frozen, self.dtype)(x, train=train)
        return x


class DenseBlock(nn.Module):
    """Layers, each of which appends its channels to its input (Huang et al. 2017, equation 2).

    Attributes:
        depth: number of layers.
        growth_rate: number of channels that a layer appends.
        frozen: convolutions whose norm is frozen, such as 'denselayer1/conv1'.
        dtype: compute dtype.
    """

    depth: int
    growth_rate: int
    frozen: frozenset[str] = frozenset()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C + depth * growth_rate]."""
        for index in range(1, self.depth + 1):
            name = f"denselayer{index}"
            layer = DenseLayer(self.growth_rate, below(self.frozen, name), self.dtype, name=name)
            x = materialize(jnp.concatenate([x, layer(x, train=train)], axis=-1))
        return tap(self, x)


class Transition(nn.Module):
    """Halves the channels and, by average pooling, the sides (DenseNet-C, Huang et al. 2017).

    Attributes:
        frozen: {'conv'} if its norm is frozen.
        dtype: compute dtype.
    """

    frozen: frozenset[str] = frozenset()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ⌊H/2⌋, ⌊W/2⌋, C/2]."""
        frozen = "conv" in self.frozen
        x = NormConv(x.shape[-1] // 2, 1, frozen=frozen, dtype=self.dtype)(x, train=train)
        return nn.avg_pool(x, (2, 2), strides=(2, 2))


class DenseNet(Model):
    """DenseNet classifier.

    Attributes:
        depths: number of layers of each dense block.
        growth_rate: number of channels that a layer appends; the stem has twice as many.
    """

    depths: tuple[int, ...]
    growth_rate: int

    def setup(self):
        stem, dtype = 2 * self.growth_rate, self.dtype
        self.conv0 = Conv(stem, 7, 2, padding=3, dtype=dtype, kernel_init=fan_in_init)
        self.norm0 = BatchNorm("conv0" in self.frozen, dtype)
        for number, depth in enumerate(self.depths, 1):
            frozen = below(self.frozen, f"denseblock{number}")
            block = DenseBlock(depth, self.growth_rate, frozen, dtype)
            setattr(self, f"denseblock{number}", block)
            if number < len(self.depths):
                frozen = below(self.frozen, f"transition{number}")
                setattr(self, f"transition{number}", Transition(frozen, dtype))
        self.norm5 = BatchNorm(list(self.layers)[-1] in self.frozen, dtype)
        self.head = Head(self.num_classes)

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Path prefixes of each layer (convolution and its norm) by address, from input to output.

        The norm lies before the convolution, except in the stem. That of the last features belongs
        to the last convolution.
        """
        layers: dict[str, tuple[str, ...]] = {"conv0": ("conv0/", "norm0/")}
        for number, depth in enumerate(self.depths, 1):
            for index in range(1, depth + 1):
                path = f"denseblock{number}/denselayer{index}"
                for conv in (1, 2):
                    layers[f"{path}/conv{conv}"] = (f"{path}/conv{conv}/", f"{path}/norm{conv}/")
            if number < len(self.depths):
                path = f"transition{number}"
                layers[f"{path}/conv"] = (f"{path}/conv/", f"{path}/norm/")
        last = list(layers)[-1]
        layers[last] = (*layers[last], "norm5/")
        return layers

    @property
    def cam_layers(self) -> tuple[str, ...]:
        """Addresses of the first dense blocks, and the last features with their norm and ReLU.

        The latter is `features[-1]`, which pytorch-grad-cam recommends.
        """
        return (*(f"denseblock{number}" for number in range(1, len(self.depths))), "features")

    @property
    def depth_groups(self) -> list[tuple[str, ...]]:
        """Path prefixes of the stem and of each dense layer, with the transition after it."""
        groups: list[tuple[str, ...]] = [("conv0/", "norm0/")]
        for number, depth in enumerate(self.depths, 1):
            path = f"denseblock{number}/denselayer"
            groups += [(f"{path}{index}/",) for index in range(1, depth + 1)]
            groups[-1] += (f"transition{number}/",)
        return groups

    @property
    def torch_modules(self) -> dict[str, str]:
        """Path of the first convolution, each dense block and the classifier by its timm name."""
        names = ["conv0"]
        for number in range(1, len(self.depths) + 1):
            names.append(f"denseblock{number}")
            if number < len(self.depths):
                names.append(f"transition{number}")
        return {f"features.{name}": name for name in names} | {"classifier": "head/fc"}

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Returns the standard deviation of a new variable, or None for a constant one."""
        if path == "head/fc/kernel":
            return (3 * shape[0]) ** -0.5
        if not path.endswith("kernel"):
            return None
        return (2 / (shape[0] * shape[1] * shape[2])) ** 0.5

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the last feature map: images [B, H, W, 3] -> [B, h, w, C], h about H/32."""
        x = nn.relu(self.norm0(self.conv0(images), train=train))
        x = max_pool(x, padding=((1, 1), (1, 1)))
        for number in range(1, len(self.depths) + 1):
            x = getattr(self, f"denseblock{number}")(x, train=train)
            if number < len(self.depths):
                x = getattr(self, f"transition{number}")(x, train=train)
        return tap(self, nn.relu(self.norm5(x, train=train)), "features")


def _patterns() -> Patterns:
    """Returns timm's names; the path of a module there has dots for slashes."""
    patterns: list[tuple[str, str, Layout]] = []
    for ours, theirs in (
        (r"", r"features"),
        (r"(denseblock\d)/(denselayer\d+)/", r"features.\1.\2"),
        (r"(transition\d)/", r"features.\1"),
    ):
        module = theirs.count("\\") + 1  # number of the group of the module's own name
        patterns += [
            (rf"{ours}(conv\d?)/kernel", rf"{theirs}.\{module}.weight", CONV),
            (rf"{ours}(norm\d?)/scale", rf"{theirs}.\{module}.weight", VECTOR),
            (rf"{ours}(norm\d?)/bias", rf"{theirs}.\{module}.bias", VECTOR),
            (
                rf"{ours}(norm\d?)/(mean|var)",
                rf"{theirs}.\{module}.running_\{module + 1}",
                VECTOR,
            ),
        ]
    return (
        *patterns,
        (r"head/fc/kernel", r"classifier.weight", DENSE),
        (r"head/fc/bias", r"classifier.bias", VECTOR),
    )


register(
    "densenet121",
    functools.partial(DenseNet, (6, 12, 24, 16), 32),
    weights="timm/densenet121.ra_in1k",
    patterns=_patterns(),
    library="timm",
)
