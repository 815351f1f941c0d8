"""SqueezeNet 1.0 and 1.1 (Iandola et al. 2016; paper table 1) with torchvision's exact semantics.

Channels last. Modules are numbered as in torchvision's `features`; there is no batch norm.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from egmae_jax.models.layers import Conv, max_pool, tap
from egmae_jax.models.registry import register

_Fires = tuple[tuple[int, int] | None, ...]
_POOL = None
# Channels and kernel size of the first convolution. Then torchvision's `features` from number 2:
# channels of a Fire module's squeeze and of each of its two expansions, or pooling.
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
# torchvision: kaiming_uniform_, here a normal distribution of the same deviation.
conv_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def ceil_mode_pool(x: jax.Array) -> jax.Array:
    """torchvision's MaxPool2d(3, 2, ceil_mode=True): the last windows may stick out by a pixel."""
    height, width = x.shape[1:3]
    return max_pool(x, padding=((0, (height - 3) % 2), (0, (width - 3) % 2)))


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side: paper figure 1."""

    squeeze: int
    expand: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, 2 * expand]."""

        def conv(x, features, size, name):
            padding = size // 2
            return nn.relu(
                Conv(features, size, 1, padding, True, self.dtype, conv_init, name=name)(x)
            )

        x = conv(x, self.squeeze, 1, "squeeze")
        expanded = [conv(x, self.expand, 1, "expand1x1"), conv(x, self.expand, 3, "expand3x3")]
        return tap(self, jnp.concatenate(expanded, axis=-1))


class Head(nn.Module):
    """Dropout -> a linear layer at every pixel -> relu -> global average pooling, in float32."""

    num_classes: int
    dropout_rate: float

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """[B, h, w, C] -> [B, num_classes]; in training needs the rng stream 'dropout'."""
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
        fc = nn.Dense(
            self.num_classes,
            dtype=jnp.float32,
            kernel_init=nn.initializers.normal(0.01),
            name="fc",
        )
        return nn.relu(fc(x)).mean(axis=(1, 2))


class SqueezeNet(nn.Module):
    """SqueezeNet classifier.

    Attributes:
        version: '1_0' or '1_1'.
        num_classes: width of the classifier.
        drop_path_rate: must be 0: there are no residual branches.
        dtype: compute dtype, float32 or bfloat16. Parameters are float32 always.
        frozen: layers (keys of `layers`) that are not trained; of no effect, there are no norms.
        dropout_rate: rate at which features are dropped in training.
    """

    version: str
    num_classes: int
    drop_path_rate: float = 0.0
    dtype: Any = jnp.float32
    frozen: frozenset[str] = frozenset()
    dropout_rate: float = 0.5

    fresh_prefixes = ("head/fc/",)  # parameters that ImageNet weights do not give
    stride = 16  # input pixels, along each side, per feature of the last map
    min_size = 32  # least image side in pixels; it need not be a multiple of the stride
    needs_multiple = False

    def __post_init__(self):
        if self.drop_path_rate:
            raise ValueError(
                f"SqueezeNet has no residual branches to drop; drop_path_rate must be 0, not "
                f"{self.drop_path_rate}."
            )
        super().__post_init__()

    def setup(self):
        features, size, modules = _VERSIONS[self.version]
        self.features_0 = Conv(features, size, 2, 0, True, self.dtype, conv_init)
        for number, fire in enumerate(modules, 2):
            if fire is not None:
                setattr(self, f"features_{number}", Fire(*fire, self.dtype))
        self.head = Head(self.num_classes, self.dropout_rate)

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Address of each convolution -> the prefix of its parameters, in order."""
        addresses = ["features_0"]
        for number, fire in enumerate(_VERSIONS[self.version][2], 2):
            parts = ("squeeze", "expand1x1", "expand3x3") if fire is not None else ()
            addresses += [f"features_{number}/{part}" for part in parts]
        return {address: (f"{address}/",) for address in addresses}

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Standard deviation that a new leaf is drawn with around 0; None: not for me to say."""
        if not path.endswith("kernel"):
            return None
        if path == "head/fc/kernel":
            return 0.01
        return (2 / (shape[0] * shape[1] * shape[2])) ** 0.5

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalised images [B, H, W, 3] -> the last map [B, h, w, 512], h about H/16."""
        del train  # nothing differs before the head
        x = nn.relu(self.features_0(images))
        for number, fire in enumerate(_VERSIONS[self.version][2], 2):
            x = ceil_mode_pool(x) if fire is None else getattr(self, f"features_{number}")(x)
        return x

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalised images [B, H, W, 3] -> logits [B, num_classes], float32.

        With `train` the rng stream 'dropout' is needed.
        """
        return self.head(self.features(images, train=train), train=train)


# The hub has no safetensors of these; torchvision publishes pickles.
_WEIGHTS = {"1_0": "b66bff10", "1_1": "b8a52dc0"}
for _version, _hash in _WEIGHTS.items():
    register(
        f"squeezenet{_version}",
        functools.partial(SqueezeNet, _version),
        family="squeezenet",
        weights=f"https://download.pytorch.org/models/squeezenet{_version}-{_hash}.pth",
    )
