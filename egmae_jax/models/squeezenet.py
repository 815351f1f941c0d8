"""SqueezeNet 1.0 and 1.1 (Iandola et al. 2016, table 1) with torchvision's exact semantics.

Channels are last. Modules are numbered as in torchvision's `features`; there is no batch norm.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from egmae_jax.models.layers import Conv, fan_in_init, max_pool, tap
from egmae_jax.models.layouts import CONV, DENSE_AS_CONV, VECTOR
from egmae_jax.models.model import Model
from egmae_jax.models.registry import register

_Fires = tuple[tuple[int, int] | None, ...]
_POOL = None
# Number of channels and kernel size of the first convolution, then torchvision's `features` from
# number 2: channels of a Fire module's squeeze layer and of each of its expand layers, or pooling.
_VERSIONS: dict[str, tuple[int, int, _Fires]] = {
    "1_0": (
        96,
        7,
        (
            *(_POOL, (16, 64), (16, 64), (32, 128)),
            *(_POOL, (32, 128), (48, 192), (48, 192), (64, 256)),
            *(_POOL, (64, 256)),
        ),
    ),
    "1_1": (
        64,
        3,
        (
            *(_POOL, (16, 64), (16, 64)),
            *(_POOL, (32, 128), (32, 128)),
            *(_POOL, (48, 192), (48, 192), (64, 256), (64, 256)),
        ),
    ),
}


def ceil_mode_pool(x: jax.Array) -> jax.Array:
    """torchvision's MaxPool2d(3, 2, ceil_mode=True), whose last windows may exceed the input."""
    height, width = x.shape[1:3]
    return max_pool(x, padding=((0, (height - 3) % 2), (0, (width - 3) % 2)))


class Fire(nn.Module):
    """A 1x1 convolution, then 1x1 and 3x3 convolutions in parallel (Iandola et al. 2016, figure 1).

    Attributes:
        squeeze: number of channels of the first convolution.
        expand: number of channels of each parallel convolution.
        dtype: compute dtype.
    """

    squeeze: int
    expand: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the module: [B, h, w, C] -> [B, h, w, 2 * expand]."""

        def conv(x, features, size, name):
            padding = size // 2
            return nn.relu(
                Conv(features, size, 1, padding, True, self.dtype, fan_in_init, name=name)(x)
            )

        x = conv(x, self.squeeze, 1, "squeeze")
        expanded = [conv(x, self.expand, 1, "expand1x1"), conv(x, self.expand, 3, "expand3x3")]
        return tap(self, jnp.concatenate(expanded, axis=-1))


class Head(nn.Module):
    """Dropout, a linear layer at every pixel, relu and global average pooling, in float32."""

    num_classes: int
    dropout_rate: float

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the logits: [B, h, w, C] -> [B, num_classes].

        With `train`, dropout is applied, which needs the rng stream 'dropout'.
        """
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
        fc = nn.Dense(
            self.num_classes,
            dtype=jnp.float32,
            kernel_init=nn.initializers.normal(0.01),
            name="fc",
        )
        return nn.relu(fc(x)).mean(axis=(1, 2))


class SqueezeNet(Model):
    """SqueezeNet classifier.

    Attributes:
        version: '1_0' or '1_1'.
        dropout_rate: dropout rate before the classifier.
    """

    version: str
    dropout_rate: float = 0.5

    def setup(self):
        features, size, modules = _VERSIONS[self.version]
        self.features_0 = Conv(features, size, 2, 0, True, self.dtype, fan_in_init)
        for number, fire in enumerate(modules, 2):
            if fire is not None:
                setattr(self, f"features_{number}", Fire(*fire, self.dtype))
        self.head = Head(self.num_classes, self.dropout_rate)

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Path prefix of each convolution's parameters by its address, from input to output."""
        addresses = ["features_0"]
        for number, fire in enumerate(_VERSIONS[self.version][2], 2):
            parts = ("squeeze", "expand1x1", "expand3x3") if fire is not None else ()
            addresses += [f"features_{number}/{part}" for part in parts]
        return {address: (f"{address}/",) for address in addresses}

    @property
    def torch_modules(self) -> dict[str, str]:
        """Path of the first convolution, each Fire module and the head by its name in PyTorch."""
        paths = dict.fromkeys(address.split("/")[0] for address in self.layers)
        return {path.replace("_", "."): path for path in paths} | {"classifier": "head"}

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Returns the standard deviation of a new variable, or None for a constant one."""
        if not path.endswith("kernel"):
            return None
        if path == "head/fc/kernel":
            return 0.01
        return (2 / (shape[0] * shape[1] * shape[2])) ** 0.5

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the last feature map: images [B, H, W, 3] -> [B, h, w, 512], h about H/16."""
        del train  # only the head differs in training
        x = nn.relu(self.features_0(images))
        for number, fire in enumerate(_VERSIONS[self.version][2], 2):
            x = ceil_mode_pool(x) if fire is None else getattr(self, f"features_{number}")(x)
        return x

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the logits: normalised images [B, H, W, 3] -> float32 [B, num_classes].

        With `train`, dropout is applied, which needs the rng stream 'dropout'.
        """
        return self.head(self.features(images, train=train), train=train)


_PATTERNS = (
    (r"features_(\d+)/kernel", r"features.\1.weight", CONV),
    (r"features_(\d+)/bias", r"features.\1.bias", VECTOR),
    (r"features_(\d+)/(\w+)/kernel", r"features.\1.\2.weight", CONV),
    (r"features_(\d+)/(\w+)/bias", r"features.\1.\2.bias", VECTOR),
    (r"head/fc/kernel", r"classifier.1.weight", DENSE_AS_CONV),
    (r"head/fc/bias", r"classifier.1.bias", VECTOR),
)
# The hub has no safetensors of these networks; torchvision publishes pickles.
_WEIGHTS = {"1_0": "b66bff10", "1_1": "b8a52dc0"}
for _version, _hash in _WEIGHTS.items():
    register(
        f"squeezenet{_version}",
        functools.partial(SqueezeNet, _version),
        patterns=_PATTERNS,
        library="torchvision",
        weights=f"https://download.pytorch.org/models/squeezenet{_version}-{_hash}.pth",
    )
