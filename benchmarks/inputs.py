"""Random images for measurements of training steps."""

import numpy as np

from egmae_jax.data.pipeline import Images

NUM_CLASSES = 4


def make_images(batch: int, image_size: int) -> Images:
    """Returns random images that are somewhat larger than the crops."""
    rng = np.random.default_rng(0)
    side = round(image_size * 256 / 224)
    return Images(
        rng.integers(0, 256, (batch, side, side, 3), np.uint8),
        np.full((batch, 2), side, np.int32),
        rng.integers(0, NUM_CLASSES, batch, np.int32),
    )
