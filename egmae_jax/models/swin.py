"""Swin Transformer (Liu et al. 2021) with windows of 7x7, equivalent to timm's; Swin-T and -B.

Swin-B is the SWIN in the tables of Florindo and Moura 2026 by its 87.77 million parameters.

Channels are last. Modules have timm's names: `layers_2/blocks_3/attn/qkv` is
`layers.2.blocks.3.attn.qkv` there. All windows have 7x7 tokens, so that parameters do not depend on
the size of the images. Thus the network is timm's with `img_size` for images whose last feature map
has at least 7x7 tokens (more than 192 pixels). Smaller maps are padded to 7x7, as in timm with
`strict_img_size=False`.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from egmae_jax.core.platform import materialize
from egmae_jax.models.layers import (
    KERNEL_STD,
    Conv,
    Head,
    LayerNorm,
    Linear,
    Mlp,
    attention,
    block_scales,
    default_init,
    drop_path,
    kernel_init,
    tap,
)
from egmae_jax.models.layouts import CONV, DENSE, VECTOR
from egmae_jax.models.model import Model
from egmae_jax.models.registry import OtherNames, register

PATCH_SIZE = 4  # pixels per side
WINDOW = 7  # tokens per side
_MASKED = -100.0  # logit of tokens that are no neighbours, as in timm
Norm = functools.partial(LayerNorm, epsilon=1e-5)


def relative_positions() -> np.ndarray:
    """Returns the row of the bias table for each pair of tokens in a window, int [49, 49]."""
    offsets = np.subtract.outer(np.arange(WINDOW), np.arange(WINDOW)) + WINDOW - 1
    index = offsets[:, None, :, None] * (2 * WINDOW - 1) + offsets[None, :, None, :]
    return index.reshape(WINDOW**2, WINDOW**2)


def shift_mask(height: int, width: int, shift: tuple[int, int]) -> np.ndarray:
    """Returns the bias that separates tokens which the cyclic shift brought into one window.

    Args:
        height: number of rows, a multiple of the window's.
        width: number of columns, a multiple of the window's.
        shift: rows and columns that the map was shifted by.

    Returns:
        float32 [number of windows, 49, 49]: 0 between neighbours, else -100.
    """

    def regions(side: int, shifted: int) -> np.ndarray:
        if not shifted:
            return np.zeros(side, int)
        return np.repeat(np.arange(3), (side - WINDOW, WINDOW - shifted, shifted))

    rows, columns = regions(height, shift[0]), regions(width, shift[1])
    region = to_windows((3 * rows[:, None] + columns)[None, ..., None])[0, ..., 0]
    return np.where(region[:, :, None] == region[:, None, :], 0, _MASKED).astype(np.float32)


def to_windows(x: Any) -> Any:
    """Splits maps into windows: [B, H, W, C] -> [B, number of windows, 49, C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, WINDOW**2, channels)


def from_windows(windows: jax.Array, height: int, width: int) -> jax.Array:
    """The inverse of `to_windows`, to [B, height, width, C]."""
    batch, *_, channels = windows.shape
    grid = height // WINDOW, width // WINDOW
    x = windows.reshape(batch, *grid, WINDOW, WINDOW, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


class WindowAttention(nn.Module):
    """Self-attention in each window, biased by relative position (Liu et al. 2021, equation 4).

    Attributes:
        num_heads: number of heads.
        dtype: compute dtype.
    """

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, windows: jax.Array, mask: np.ndarray | None) -> jax.Array:
        """[B, windows, 49, C] -> the same shape; `mask` [windows, 49, 49] is added to logits."""
        channels = windows.shape[-1]
        shape = ((2 * WINDOW - 1) ** 2, self.num_heads)
        table = self.param("relative_position_bias_table", kernel_init, shape)
        bias = table[relative_positions()].transpose(2, 0, 1)  # [heads, 49, 49]
        if mask is not None:
            bias = bias + mask[:, None]
        qkv = Linear(3 * channels, self.dtype, name="qkv")(windows)
        return Linear(channels, self.dtype, name="proj")(attention(qkv, self.num_heads, bias))


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), each branch with a drop path of its own.

    Attributes:
        num_heads: number of heads.
        shifts: whether windows are shifted by half their side.
        is_last: whether this is the last stage, where a map of one window is not shifted.
        dtype: compute dtype.
    """

    num_heads: int
    shifts: bool
    is_last: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scales: Sequence[jax.Array | None]) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]; `scales` are both branches' drop-path factors [B]."""
        y = tap(self, Norm(name="norm1")(x), "normalized")
        x = materialize(x + drop_path(self._attend(y), scales[0]))
        y = Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")(Norm(name="norm2")(x))
        return tap(self, materialize(x + drop_path(y, scales[1])))

    def _attend(self, x: jax.Array) -> jax.Array:
        """Applies the attention within shifted windows, [B, H, W, C] -> [B, H, W, C]."""
        sides = height, width = x.shape[1:3]
        largest = WINDOW if self.is_last else 0  # side of maps that are not shifted
        row, column = (WINDOW // 2 * (self.shifts and side > largest) for side in sides)
        x = jnp.roll(x, (-row, -column), axis=(1, 2))
        padding = [(0, -side % WINDOW) for side in sides]
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        mask = shift_mask(x.shape[1], x.shape[2], (row, column)) if row or column else None
        attn = WindowAttention(self.num_heads, self.dtype, name="attn")
        y = from_windows(attn(to_windows(x), mask), *x.shape[1:3])
        return jnp.roll(y[:, :height, :width], (row, column), axis=(1, 2))


class PatchMerging(nn.Module):
    """Concatenates 2x2 neighbouring tokens, normalizes them and maps them to `features`."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, ⌈H/2⌉, ⌈W/2⌉, features]; odd sides are padded with zeros."""
        x = jnp.pad(x, ((0, 0), *((0, side % 2) for side in x.shape[1:3]), (0, 0)))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = Norm(name="norm")(x.reshape(batch, height // 2, width // 2, 4 * channels))
        reduction = nn.Dense(
            self.features, False, self.dtype, kernel_init=kernel_init, name="reduction"
        )
        return tap(self, reduction(x))


class Stage(nn.Module):
    """Merging of patches, except in the first stage, and blocks.

    Attributes:
        features: number of output channels.
        depth: number of blocks; every second one shifts its windows.
        num_heads: number of heads.
        is_first: whether this is the first stage, which merges no patches.
        is_last: whether this is the last stage.
        dtype: compute dtype.
    """

    features: int
    depth: int
    num_heads: int
    is_first: bool
    is_last: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scales: Sequence[jax.Array | None]) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]; `scales` are two drop-path factors [B] a block."""
        if not self.is_first:
            x = PatchMerging(self.features, self.dtype, name="downsample")(x)
        for index in range(self.depth):
            shifts, name = index % 2 == 1, f"blocks_{index}"
            block = Block(self.num_heads, shifts, self.is_last, self.dtype, name=name)
            x = block(x, scales[2 * index : 2 * index + 2])
        return x


class PatchEmbed(nn.Module):
    """Embeds 4x4 patches of the image and normalizes them."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, H/4, W/4, features]."""
        size = PATCH_SIZE
        proj = Conv(self.features, size, size, 0, True, self.dtype, default_init, name="proj")
        return Norm(name="norm")(proj(images))


class Swin(Model):
    """Swin Transformer classifier.

    Attributes:
        depths: number of blocks of each of the four stages.
        dim: number of channels of the first stage; each further one has twice as many.
        num_heads: number of heads in each stage.
    """

    depths: tuple[int, ...]
    dim: int
    num_heads: tuple[int, ...]

    block_parts = 2
    side_multiple = PATCH_SIZE
    fixed_input_size = True

    @staticmethod
    def timm_options(side: int) -> dict[str, Any]:
        """Returns the arguments by which timm creates this network for images of `side` pixels."""
        if side == 224:
            return {}
        return {"img_size": side} if side > 192 else {"strict_img_size": False}

    def setup(self):
        self.patch_embed = PatchEmbed(self.dim, self.dtype)
        last = len(self.depths) - 1
        for i, depth in enumerate(self.depths):
            heads, ends = self.num_heads[i], (i == 0, i == last)
            # One by one, as `layers` are the layers of a `Model`.
            setattr(self, f"layers_{i}", Stage(self.dim * 2**i, depth, heads, *ends, self.dtype))
        self.norm = Norm()
        self.head = Head(self.num_classes, kernel_init)

    @property
    def drop_path_rates(self) -> np.ndarray:
        """Drop-path rate of both branches of each block, float [2 * blocks], linear in depth."""
        return np.repeat(np.linspace(0.0, self.drop_path_rate, sum(self.depths)), 2)

    @property
    def _blocks(self) -> list[str]:
        return [f"layers_{i}/blocks_{j}" for i, n in enumerate(self.depths) for j in range(n)]

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Path prefixes of each layer by address: the embedding, mergings of patches and blocks."""
        layers: dict[str, tuple[str, ...]] = {"patch_embed/proj": ("patch_embed/",)}
        for block in self._blocks:
            stage, _, name = block.partition("/")
            if name == "blocks_0" and stage != "layers_0":
                layers[f"{stage}/downsample"] = (f"{stage}/downsample/",)
            layers[block] = (f"{block}/",)
        layers[block] += ("norm/",)
        return layers

    @property
    def cam_layers(self) -> tuple[str, ...]:
        """Addresses of the first norms, from which pytorch-grad-cam computes heat maps."""
        return tuple(f"{block}/normalized" for block in self._blocks)

    @property
    def torch_modules(self) -> dict[str, str]:
        """Path of the embedding, each block, the norm and the classifier by its name in timm."""
        blocks = {b.replace("/", ".").replace("s_", "s."): b for b in self._blocks}
        return {"patch_embed": "patch_embed", **blocks, "norm": "norm", "head.fc": "head/fc"}

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Returns the standard deviation of a new variable, or None for a constant one."""
        if path == "patch_embed/proj/kernel":
            return (3 * np.prod(shape[:-1], dtype=int)) ** -0.5
        return KERNEL_STD if path.endswith(("kernel", "bias_table")) else None

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the last feature map, normalized: [B, H, W, 3] -> [B, ⌈H/32⌉, ⌈W/32⌉, C]."""
        self.require_sides(images)
        scales = iter(block_scales(self, self.drop_path_rates, images.shape[0], train=train))
        x = self.patch_embed(images)
        for i, depth in enumerate(self.depths):
            x = getattr(self, f"layers_{i}")(x, list(itertools.islice(scales, 2 * depth)))
        return self.norm(x)


_BLOCK = r"layers_(\d+)/blocks_(\d+)"
_TIMMS = r"layers.\1.blocks.\2"
_PATTERNS = (
    (r"patch_embed/proj/kernel", r"patch_embed.proj.weight", CONV),
    (r"patch_embed/proj/bias", r"patch_embed.proj.bias", VECTOR),
    (r"patch_embed/norm/scale", r"patch_embed.norm.weight", VECTOR),
    (r"patch_embed/norm/bias", r"patch_embed.norm.bias", VECTOR),
    (r"layers_(\d+)/downsample/norm/scale", r"layers.\1.downsample.norm.weight", VECTOR),
    (r"layers_(\d+)/downsample/norm/bias", r"layers.\1.downsample.norm.bias", VECTOR),
    (r"layers_(\d+)/downsample/reduction/kernel", r"layers.\1.downsample.reduction.weight", DENSE),
    (rf"{_BLOCK}/(norm\d)/scale", rf"{_TIMMS}.\3.weight", VECTOR),
    (rf"{_BLOCK}/(norm\d)/bias", rf"{_TIMMS}.\3.bias", VECTOR),
    (rf"{_BLOCK}/attn/(qkv|proj)/kernel", rf"{_TIMMS}.attn.\3.weight", DENSE),
    (rf"{_BLOCK}/attn/(qkv|proj)/bias", rf"{_TIMMS}.attn.\3.bias", VECTOR),
    (rf"{_BLOCK}/attn/(\w+_table)", rf"{_TIMMS}.attn.\3", VECTOR),
    (rf"{_BLOCK}/(fc\d)/kernel", rf"{_TIMMS}.mlp.\3.weight", DENSE),
    (rf"{_BLOCK}/(fc\d)/bias", rf"{_TIMMS}.mlp.\3.bias", VECTOR),
    (r"norm/scale", r"norm.weight", VECTOR),
    (r"norm/bias", r"norm.bias", VECTOR),
    (r"head/fc/kernel", r"head.fc.weight", DENSE),
    (r"head/fc/bias", r"head.fc.bias", VECTOR),
)
# Microsoft's stages end with the merging that timm's begin with, and its files hold constants.
_OTHER_NAMES: OtherNames = {
    "Microsoft's": (
        r"layers\.0\.downsample\.reduction\.weight",
        (
            (r".+\.(?:relative_position_index|attn_mask)", ""),
            *(
                (rf"layers\.{i}\.downsample\.(.+)", rf"layers.{i + 1}.downsample.\1")
                for i in range(3)
            ),
            (r"head\.(weight|bias)", r"head.fc.\1"),
        ),
    ),
    "timm's older": (
        r".+\.(?:relative_position_index|attn_mask)",
        ((r".+\.(?:relative_position_index|attn_mask)", ""),),
    ),
}

# Depths, channels, heads and tag of timm's default weights. Those of Swin-B are pre-trained on
# ImageNet-22k.
_SIZES = {
    "tiny": ((2, 2, 6, 2), 96, (3, 6, 12, 24), "ms_in1k"),
    "base": ((2, 2, 18, 2), 128, (4, 8, 16, 32), "ms_in22k_ft_in1k"),
}
for _size, (_depths, _width, _heads, _tag) in _SIZES.items():
    register(
        f"swin_{_size}_patch4_window7_224",
        functools.partial(Swin, _depths, _width, _heads),
        weights=f"timm/swin_{_size}_patch4_window7_224.{_tag}",
        patterns=_PATTERNS,
        library="timm",
        other_names=_OTHER_NAMES,
    )
