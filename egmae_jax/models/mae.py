"""The masked autoencoder's network: a ConvNeXt encoder and a light decoder (paper section 3.3).

The decoder is ConvNeXt V2's (Woo et al. 2023, FCMAE) for an encoder of stride 32: it maps each
feature to the 32x32 pixels at its place.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from egmae_jax.models.convnext import TOTAL_STRIDE, ConvNeXt, ConvNeXtBlock
from egmae_jax.models.kernels.operations import broadcast_to
from egmae_jax.models.layers import KERNEL_STD, Linear, kernel_init


class Decoder(nn.Module):
    """Reconstructs the image from the encoder's features and the mask (equation 6)."""

    dim: int = 512
    depth: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        """Reconstructs images.

        Args:
            features: the encoder's features [B, H/32, W/32, D].
            mask: mask of the patches [B, H/P, W/P], 1 = masked.

        Returns:
            Images in normalized units, float32 [B, H, W, 3].
        """
        batch, rows, columns, _ = features.shape
        x = Linear(self.dim, self.dtype, name="embed")(features)
        # The mask M enters as one channel, the masked share of each cell, by a learned embedding.
        embedding = self.param("mask_embedding", kernel_init, (1, self.dim))
        embedding = broadcast_to(embedding[0].astype(self.dtype), x.shape)
        x = x + _masked_share(mask, rows, columns)[..., None] * embedding
        for index in range(self.depth):
            x = ConvNeXtBlock(dtype=self.dtype, name=f"blocks_{index}")(x)
        s = TOTAL_STRIDE
        x = Linear(s * s * 3, name="predict")(x)
        # Pixel shuffle: [B, h, w, s*s*3] -> [B, h*s, w*s, 3].
        x = x.reshape(batch, rows, columns, s, s, 3).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, rows * s, columns * s, 3)


def _masked_share(mask: jax.Array, rows: int, columns: int) -> jax.Array:
    """Computes the masked share of each cell's area, [B, H/P, W/P] -> [B, rows, columns].

    It refines both grids to a common one, so the patch size may be smaller or larger than the
    cell, as long as it divides the image side.
    """
    for axis, cells in ((1, rows), (2, columns)):
        patches = mask.shape[axis]
        mask = jnp.repeat(mask, cells, axis=axis)
        shape = (*mask.shape[:axis], cells, patches, *mask.shape[axis + 1 :])
        mask = mask.reshape(shape).mean(axis=axis + 1)
    return mask


class MaskedAutoencoder(nn.Module):
    """Masked autoencoder: an encoder without its head, and a decoder.

    Attributes:
        encoder: the ConvNeXt; its classifier is not built, so `params['encoder']` has no `head`.
        decoder_dim: number of channels of the decoder.
        decoder_depth: number of ConvNeXt blocks of the decoder.
    """

    encoder: ConvNeXt
    decoder_dim: int = 512
    decoder_depth: int = 1

    def setup(self):
        self.decoder = Decoder(self.decoder_dim, self.decoder_depth, self.encoder.dtype)
        # Value of a masked pixel for corruptions that replace pixels instead of adding noise. In
        # normalized units it starts at 0, ImageNet's mean colour.
        self.mask_token = self.param("mask_token", nn.initializers.zeros, (3,))

    def initial_std(self, path: str, shape: tuple[int, ...]) -> float | None:
        """Returns the standard deviation of a new variable, or None for a constant one."""
        return KERNEL_STD if path.endswith("embedding") else self.encoder.initial_std(path, shape)

    def __call__(self, images: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Reconstructs [B, H, W, 3] from corrupted images [B, H, W, 3] and mask [B, H/P, W/P]."""
        features = self.encoder.features(images, train=train)  # equation 5
        return self.decoder(features, mask)  # equation 6
