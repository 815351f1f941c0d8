"""What a network is to the rest of the package: `Model`, the base class of all classifiers."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from egmae_jax.method import augment


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, of pixel values / 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalization(augment.MEAN, augment.STD)
INCEPTION = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # timm's name of this one

MIN_SIDE = 32  # smallest side of an image, in pixels, for all networks


class Model(nn.Module, kw_only=True):
    """Base class of classifiers: normalised images [B, H, W, 3] -> logits [B, num_classes].

    A network defines `layers`, `features` and the module `head`, whose classifier is at `head/fc/`.
    The other attributes have defaults.

    Attributes:
        num_classes: number of classes.
        dtype: compute dtype, float32 or bfloat16; logits and parameters are float32.
        drop_path_rate: drop-path rate of the last residual block; it grows linearly from 0 at the
            first. Networks without such blocks ignore it.
        remat: whether the backward pass recomputes wide activations, if `can_remat`.
        frozen: keys of `layers` whose batch norms keep their running statistics in training.
        convert_from_imagenet: normalisation to which the network converts images that have
            ImageNet's; None: it takes images as they are. Networks are only asked for it if their
            ImageNet weights expect another normalisation than ImageNet's.
        fresh_prefixes: path prefixes of the parameters that ImageNet weights do not contain.
        side_multiple: number of pixels that must divide the sides of an image; 1 for any side.
        can_remat: whether the network reads `remat`.
        can_pretrain: whether it can be the encoder of `models.mae.MaskedAutoencoder`.
        has_fusion_weights: whether `models.asff.fusion_weights` accepts it.
        block_parts: number of the parts of a layer's address that name its block: 1 if the block of
            'layer1_0/conv2' is 'layer1_0'.
        partial_layers: words for the layers that feed only a part of the logits, by prefix of their
            addresses.
        global_pool: setting of this name in timm's configuration.
        fixed_input_size: setting of this name in timm's configuration.
        initial_std: method (path, shape) -> standard deviation of a new variable around 0, or None
            for one that starts constant; None: `init` draws the variables, see `models.init`.
    """

    num_classes: int
    dtype: Any = jnp.float32
    drop_path_rate: float = 0.0
    remat: bool = False
    frozen: frozenset[str] = frozenset()
    convert_from_imagenet: Normalization | None = None

    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head/fc/",)
    side_multiple: ClassVar[int] = 1
    can_remat: ClassVar[bool] = False
    can_pretrain: ClassVar[bool] = False
    has_fusion_weights: ClassVar[bool] = False
    block_parts: ClassVar[int] = 1
    partial_layers: ClassVar[Mapping[str, str]] = {}
    global_pool: ClassVar[str] = "avg"
    fixed_input_size: ClassVar[bool] = False
    initial_std: ClassVar[Any] = None

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Path prefixes of each layer's parameters by the layer's address, from input to output.

        An address is the path of a `models.layers.tap`. The layers contain all parameters but those
        of the head.
        """
        raise NotImplementedError

    @property
    def depth_groups(self) -> list[tuple[str, ...]]:
        """Path prefixes of the stem and of each block, from input to output.

        `finetune.layer_decay` scales their learning rates. A 'downsample' belongs to the 'blocks_0'
        after it, and the head to none.
        """
        blocks: dict[tuple[str, ...], tuple[str, ...]] = {}
        for address, prefixes in self.layers.items():
            parts = address.replace("downsample", "blocks_0").split("/")
            block = tuple(parts[: self.block_parts])
            blocks[block] = blocks.get(block, ()) + prefixes
        return list(blocks.values())

    @property
    def cam_layers(self) -> tuple[str, ...]:
        """Addresses from which Grad-CAM's default layer is chosen; (): those of all blocks."""
        return ()

    @property
    def torch_modules(self) -> dict[str, str]:
        """Path of each module whose output `egmae compare` compares, by its name in PyTorch."""
        return {}

    @staticmethod
    def timm_options(side: int) -> dict[str, Any]:
        """Returns the arguments by which timm creates this network for images of `side` pixels."""
        del side
        return {}

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the last feature map: normalised images [B, H, W, 3] -> [B, h, w, C].

        Args:
            images: normalised images [B, H, W, 3].
            train: whether batch norms use the statistics of the batch, and blocks drop their
                branches; if `drop_path_rate` is above 0, this needs the rng stream 'drop_path'.

        Raises:
            ValueError: H or W is not a multiple of `side_multiple`.
        """
        raise NotImplementedError

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the logits: normalised images [B, H, W, 3] -> float32 [B, num_classes]."""
        return self.head(self.features(images, train=train))

    @nn.nowrap
    def require_sides(self, images: jax.Array) -> None:
        """Raises ValueError unless `side_multiple` divides H and W of images [B, H, W, 3]."""
        (height, width), multiple = images.shape[1:3], self.side_multiple
        if height % multiple or width % multiple:
            raise ValueError(
                f"{type(self).__name__} needs image sides divisible by {multiple}; "
                f"got {height}x{width}."
            )

    @nn.nowrap
    def converted(self, images: jax.Array) -> jax.Array:
        """Converts images [B, H, W, 3] from ImageNet's normalisation to `convert_from_imagenet`."""
        if self.convert_from_imagenet is None:
            return images
        mean, std = (jnp.array(x) for x in self.convert_from_imagenet)
        return (images * jnp.array(augment.STD) + (jnp.array(augment.MEAN) - mean)) / std
