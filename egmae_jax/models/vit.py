"""Vision transformer ViT-S/16 (Dosovitskiy et al. 2021, Steiner et al. 2022), equivalent to timm's.

Modules have timm's names: `blocks_3/attn/qkv` is `blocks.3.attn.qkv` there. The position embeddings
are those of images of 224 pixels. For another image size each call resamples them as timm does when
it loads weights for that size or has `dynamic_img_size=True`, so parameters do not depend on the
size of the images. The weights expect images with mean and standard deviation .5.
"""

import functools
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
    LayerNorm,
    Linear,
    Mlp,
    attention,
    block_scales,
    default_init,
    drop_path,
    tap,
)
from egmae_jax.models.layouts import CONV, DENSE, VECTOR
from egmae_jax.models.model import INCEPTION, Model
from egmae_jax.models.registry import register

PATCH_SIZE = 16  # pixels per side
GRID = 14  # rows and columns of the position embeddings: 224 pixels
CLASS_TOKEN_STD = 1e-6


def tap_patches(
    module: nn.Module, tokens: jax.Array, grid: tuple[int, int], name: str = "output"
) -> jax.Array:
    """Applies `tap` to the tokens of the patches, as a feature map.

    Args:
        module: module whose path is the address.
        tokens: class token and tokens of the patches, [B, 1 + rows * columns, C].
        grid: numbers of rows and columns of the patches.
        name: name of the activation.
    """
    batch, _, channels = tokens.shape
    patches = tap(module, tokens[:, 1:].reshape(batch, *grid, channels), name)
    return jnp.concatenate([tokens[:, :1], patches.reshape(batch, -1, channels)], axis=1)


class Attention(nn.Module):
    """Self-attention between all tokens, with linear layers before and after it.

    Attributes:
        num_heads: number of heads.
        dtype: compute dtype.
    """

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[B, N, C] -> [B, N, C]."""
        channels = tokens.shape[-1]
        qkv = Linear(3 * channels, self.dtype, name="qkv")(tokens)
        return Linear(channels, self.dtype, name="proj")(attention(qkv, self.num_heads))


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), each branch with a drop path of its own."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: jax.Array, grid: tuple[int, int], scales: Sequence[jax.Array | None]
    ) -> jax.Array:
        """Applies the block.

        Args:
            tokens: class token and tokens of the patches, [B, 1 + rows * columns, C].
            grid: numbers of rows and columns of the patches.
            scales: drop-path factors [B] of both branches; None drops nothing.
        """
        y = tap_patches(self, LayerNorm(name="norm1")(tokens), grid, "normalized")
        y = Attention(self.num_heads, self.dtype, name="attn")(y)
        tokens = materialize(tokens + drop_path(y, scales[0]))
        y = LayerNorm(name="norm2")(tokens)
        y = Mlp(4 * tokens.shape[-1], dtype=self.dtype, name="mlp")(y)
        tokens = materialize(tokens + drop_path(y, scales[1]))
        return tap_patches(self, tokens, grid)


class PatchEmbed(nn.Module):
    """Embeds 16x16 patches of the image."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, H/16, W/16, features]."""
        size = PATCH_SIZE
        return Conv(self.features, size, size, 0, True, self.dtype, default_init, name="proj")(
            images
        )


class Head(nn.Module):
    """Linear layer, in float32."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, C] -> [B, num_classes]."""
        return Linear(self.num_classes, name="fc")(x.astype(jnp.float32))


class ViT(Model):
    """Vision transformer, which classifies by its class token.

    Attributes:
        depth: number of blocks.
        dim: number of channels of a token.
        num_heads: number of heads of each attention.
    """

    depth: int
    dim: int
    num_heads: int

    side_multiple = PATCH_SIZE
    global_pool = "token"
    fixed_input_size = True

    @staticmethod
    def timm_options(side: int) -> dict[str, Any]:
        """Returns the arguments by which timm creates this network for images of `side` pixels."""
        return {} if side == GRID * PATCH_SIZE else {"dynamic_img_size": True}

    def setup(self):
        self.patch_embed = PatchEmbed(self.dim, self.dtype)
        token_init = nn.initializers.normal(CLASS_TOKEN_STD)
        self.cls_token = self.param("cls_token", token_init, (1, 1, self.dim))
        position_init = nn.initializers.normal(KERNEL_STD)
        self.pos_embed = self.param("pos_embed", position_init, (1, 1 + GRID**2, self.dim))
        self.blocks = [Block(self.num_heads, self.dtype) for _ in range(self.depth)]
        self.norm = LayerNorm()
        self.head = Head(self.num_classes)

    @property
    def drop_path_rates(self) -> np.ndarray:
        """Drop-path rate of both branches of each block, float [2 * depth], linear in depth."""
        return np.repeat(np.linspace(0.0, self.drop_path_rate, self.depth), 2)

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Path prefixes of each layer's parameters by address: the embedding and each block."""
        blocks: dict[str, tuple[str, ...]]
        blocks = {f"blocks_{i}": (f"blocks_{i}/",) for i in range(self.depth)}
        blocks[f"blocks_{self.depth - 1}"] += ("norm/",)
        return {"patch_embed/proj": ("patch_embed/", "cls_token", "pos_embed"), **blocks}

    @property
    def cam_layers(self) -> tuple[str, ...]:
        """Addresses of the first norms, from which pytorch-grad-cam computes heat maps."""
        return tuple(f"blocks_{i}/normalized" for i in range(self.depth))

    @property
    def torch_modules(self) -> dict[str, str]:
        """Path of each block and the classifier by its name in timm."""
        blocks = {f"blocks.{i}": f"blocks_{i}" for i in range(self.depth)}
        return {**blocks, "norm": "norm", "head": "head/fc"}

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Returns the standard deviation of a new variable, or None for a constant one."""
        if path == "patch_embed/proj/kernel":
            return (3 * np.prod(shape[:-1], dtype=int)) ** -0.5
        if path == "cls_token":
            return CLASS_TOKEN_STD
        return KERNEL_STD if path.endswith(("kernel", "pos_embed")) else None

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the patches' last tokens, normalized: [B, H, W, 3] -> [B, H/16, W/16, dim]."""
        tokens, grid = self._tokens(images, train=train)
        return tokens[:, 1:].reshape(images.shape[0], *grid, self.dim)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the logits: normalised images [B, H, W, 3] -> float32 [B, num_classes]."""
        tokens, _ = self._tokens(images, train=train)
        return self.head(tokens[:, 0])

    def _tokens(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[int, int]]:
        """Returns the tokens after the last norm, [B, 1 + rows * columns, dim], and their grid."""
        self.require_sides(images)
        scales = block_scales(self, self.drop_path_rates, images.shape[0], train=train)
        patches = self.patch_embed(self.converted(images))
        batch, rows, columns, _ = patches.shape
        token = jnp.broadcast_to(self.cls_token.astype(self.dtype), (batch, 1, self.dim))
        tokens = jnp.concatenate([token, patches.reshape(batch, rows * columns, self.dim)], axis=1)
        tokens += resample_positions(self.pos_embed, (rows, columns)).astype(self.dtype)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, (rows, columns), scales[2 * index : 2 * index + 2])
        return self.norm(tokens), (rows, columns)


def resample_positions(embeddings: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Resamples position embeddings to another grid, as timm's `resample_abs_pos_embed` does.

    Args:
        embeddings: those of the class token and of a grid of 14 by 14 patches, [1, 1 + 196, C].
        grid: numbers of rows and columns.

    Returns:
        [1, 1 + rows * columns, C], by antialiased bicubic interpolation.
    """
    if grid == (GRID, GRID):
        return embeddings
    channels = embeddings.shape[-1]
    patches = embeddings[:, 1:].reshape(1, GRID, GRID, channels)
    patches = jax.image.resize(
        patches, (1, *grid, channels), "cubic", precision=jax.lax.Precision.HIGHEST
    )
    return jnp.concatenate([embeddings[:, :1], patches.reshape(1, -1, channels)], axis=1)


_PATTERNS = (
    (r"(cls_token|pos_embed)", r"\1", VECTOR),
    (r"patch_embed/proj/kernel", r"patch_embed.proj.weight", CONV),
    (r"patch_embed/proj/bias", r"patch_embed.proj.bias", VECTOR),
    (r"blocks_(\d+)/(norm\d)/scale", r"blocks.\1.\2.weight", VECTOR),
    (r"blocks_(\d+)/(norm\d)/bias", r"blocks.\1.\2.bias", VECTOR),
    (r"blocks_(\d+)/attn/(qkv|proj)/kernel", r"blocks.\1.attn.\2.weight", DENSE),
    (r"blocks_(\d+)/attn/(qkv|proj)/bias", r"blocks.\1.attn.\2.bias", VECTOR),
    (r"blocks_(\d+)/(fc\d)/kernel", r"blocks.\1.mlp.\2.weight", DENSE),
    (r"blocks_(\d+)/(fc\d)/bias", r"blocks.\1.mlp.\2.bias", VECTOR),
    (r"norm/scale", r"norm.weight", VECTOR),
    (r"norm/bias", r"norm.bias", VECTOR),
    (r"head/fc/kernel", r"head.weight", DENSE),
    (r"head/fc/bias", r"head.bias", VECTOR),
)


# timm's default weights are pre-trained on ImageNet-21k and fine-tuned on ImageNet-1k.
register(
    "vit_small_patch16_224",
    functools.partial(ViT, 12, 384, 6),
    weights="timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    patterns=_PATTERNS,
    library="timm",
    normalization=INCEPTION,
)
