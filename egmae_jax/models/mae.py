"""The masked autoencoder's network: a ConvNeXt encoder and a light decoder (paper section 3.3).

The decoder is ConvNeXt V2's (Woo et al. 2023, FCMAE) for an encoder of stride 32: it maps every
feature to the 32x32 pixels it stands for.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from egmae_jax.models.convnext import TOTAL_STRIDE, ConvNeXt, ConvNeXtBlock, Dense, kernel_init


class Decoder(nn.Module):
    """Reconstructs the image from the features and the positions of the masked patches (eq. 6)."""

    dim: int = 512
    depth: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        """Reconstructs.

        Args:
            features: [B, H/32, W/32, D], the encoder's.
            mask: [B, H/P, W/P], 1 = masked.

        Returns:
            [B, H, W, 3] in normalised pixel units, float32.
        """
        batch, rows, columns, _ = features.shape
        x = Dense(self.dim, dtype=self.dtype, name="embed")(features)
        # M enters as one channel, the masked share of each cell, through a learned embedding.
        embedding = self.param("mask_embedding", kernel_init, (1, self.dim))
        x = x + _masked_share(mask, rows, columns)[..., None] * embedding[0].astype(self.dtype)
        for index in range(self.depth):
            x = ConvNeXtBlock(dtype=self.dtype, name=f"blocks_{index}")(x)
        s = TOTAL_STRIDE
        x = Dense(s * s * 3, dtype=jnp.float32, name="predict")(x)
        # Pixel shuffle: [B, h, w, s*s*3] -> [B, h*s, w*s, 3].
        x = x.reshape(batch, rows, columns, s, s, 3).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, rows * s, columns * s, 3)


def _masked_share(mask: jax.Array, rows: int, columns: int) -> jax.Array:
    """[B, H/P, W/P] -> [B, rows, columns]: the share of each cell's area that is masked.

    Works through the common refinement of both grids, so any patch size that divides the image
    side will do, smaller or larger than the cell.
    """
    for axis, cells in ((1, rows), (2, columns)):
        patches = mask.shape[axis]
        mask = jnp.repeat(mask, cells, axis=axis)
        shape = (*mask.shape[:axis], cells, patches, *mask.shape[axis + 1 :])
        mask = mask.reshape(shape).mean(axis=axis + 1)
    return mask


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder. The encoder's head is not built: `params['encoder']` has no `head`."""

    encoder: ConvNeXt
    decoder_dim: int = 512
    decoder_depth: int = 1

    def setup(self):
        self.decoder = Decoder(self.decoder_dim, self.decoder_depth, self.encoder.dtype)
        # Stands for a masked pixel where a corruption replaces pixels instead of adding noise;
        # normalised units, so it starts as the mean colour of ImageNet.
        self.mask_token = self.param("mask_token", nn.initializers.zeros, (3,))

    def __call__(self, images: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
        """Corrupted, normalised images [B, H, W, 3] and mask [B, H/P, W/P] -> [B, H, W, 3]."""
        features = self.encoder.features(images, train=train)  # equation 5
        return self.decoder(features, mask)  # equation 6
