"""Random augmentations on the device: each image has its own key, and one program does all.

python examples/augmentation.py
"""

# %% Images and augmentations, by the names and arguments of the config field finetune.augment.
import jax
import jax.numpy as jnp
import numpy as np

from egmae_jax import augmentations
from egmae_jax.augmentations import image_ops
from egmae_jax.data.phantoms import phantom

rng = np.random.default_rng(0)
grey = np.stack([phantom(rng, label, 96, 96) for label in ("benign", "malignant", "normal")])
images = jnp.repeat(grey[..., None] / 255.0, 3, axis=-1)  # float32 [B, H, W, 3] in [0, 1]
steps = augmentations.parse(("vertical_flip", "rotate(15)", "color_jitter(0.2, 0.2)"))
print(*steps, sep="\n")

# %% One program for a batch; each image draws with a key of its own.
augment = jax.jit(lambda key, images: augmentations.apply(key, images, steps))
augmented = augment(jax.random.key(0), images)
print("mean change of each image:", jnp.abs(augmented - images).mean(axis=(1, 2, 3)))

# %% The operations, with given parameters; they equal those of torchvision.transforms.v2.
turned = image_ops.affine(images[0], image_ops.affine_matrix(angle=30.0, scale=1.2))
print("rotated and enlarged:", turned.shape, turned.dtype)
