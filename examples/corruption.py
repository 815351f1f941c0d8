"""Entropy-guided noise on an image: patch entropy, the noise, and all other corruptions.

python examples/corruption.py        # or cell by cell in an editor that supports `# %%`
"""

# %% An image to corrupt: a generated ultrasound. Any uint8 array [B, H, W, 3] works.
import jax
import numpy as np

from egmae_jax.data.phantoms import phantom
from egmae_jax.method import augment, corruption
from egmae_jax.method.entropy import patchify

grey = phantom(np.random.default_rng(0), "malignant", 224, 224)
images = np.repeat(grey[None, :, :, None], 3, axis=-1)
print("images", images.shape, images.dtype)

# %% Entropy of its patches, from the 8-bit values before normalisation (paper section 3.3).
entropy = corruption.patch_entropy(images, patch_size=16)
print(f"entropy {entropy.shape}: {entropy.min():.2f} to {entropy.max():.2f} nats")

# %% The paper's corruption: Gaussian noise on each patch, whose variance is the patch's entropy.
normalized = augment.normalize(images)
noisy = corruption.corrupt(
    jax.random.key(0), normalized, entropy, kind="entropy_noise", patch_size=16
)
added = patchify(noisy.image - normalized, 16).var(axis=(-1, -2))
print(f"noise variance over entropy, mean of patches: {(added / entropy).mean():.3f}")

# %% The other corruptions: masks chosen by entropy or at random, and unguided noise.
for kind in corruption.kinds():
    other = corruption.corrupt(
        jax.random.key(0), normalized, entropy, kind=kind, patch_size=16, mask_ratio=0.6
    )
    print(f"{kind:16} masked {other.mask.mean():4.0%}, noise up to {other.sigma.max():.2f}")
