"""Grad-CAM of any model, and the share of its heat inside a lesion.

python examples/explain.py
"""

# %% A model and an image. For the models of a run: egmae explain --workdir=W --out=FOLDER
import jax
import jax.numpy as jnp
import numpy as np

from egmae_jax import models
from egmae_jax.data.phantoms import phantom
from egmae_jax.explain import gradcam, localization
from egmae_jax.explain.overlay import overlay
from egmae_jax.method import augment
from egmae_jax.models.init import initial_variables

model = models.create("squeezenet1_1", num_classes=3)  # small, so that it compiles fast
variables = initial_variables(
    model, 0, jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32), kernel_init="fan_in"
)
grey = phantom(np.random.default_rng(0), "benign", 96, 96)
pixels = np.repeat(grey[None, :, :, None], 3, axis=-1)  # uint8 [1, 96, 96, 3]

# %% Regions that raise the predicted class's score, at the default layer (at least 7 x 7 cells).
result = gradcam.explain(model, variables, augment.normalize(pixels))
print("heat", result.heat.shape, "of class", int(result.classes[0]), "at")
print(gradcam.layer_at(model, 96))
print("layers:", ", ".join(gradcam.layers(model)[:4]), "...")

# %% Grad-CAM of another class, at another layer.
images = augment.normalize(pixels)
earlier = gradcam.gradcam(model, variables, images, classes=2, layer="features_4")
print(f"mean heat {earlier.mean():.3f}")

# %% The share of the heat inside the lesion mask. Here the mask is a square; use an annotated one.
mask = np.zeros((96, 96), bool)
mask[30:60, 30:60] = True
share = localization.heat_in_mask(np.asarray(result.heat[0]), mask)
print(f"{share:.1%} of the heat in {localization.area_share(mask):.1%} of the area")

# %% An overlay picture with the mask's outline: uint8 [96, 96, 3].
print("overlay", overlay(pixels[0], np.asarray(result.heat[0]), mask).shape)
