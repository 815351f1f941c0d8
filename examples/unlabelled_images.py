"""Images without labels: leave out what shows test images, pre-train an encoder, use its features.

On the command line, with an encoder that timm loads: egmae pretrain --images FOLDER --out=W
and egmae features --workdir=W --images FOLDER --out=features.npz

python examples/unlabelled_images.py
"""

# %% Images with labels, half of them for testing, and images without. One of the latter is a test
# image, mirrored.
import functools

import jax
import numpy as np
import PIL.Image

from egmae_jax.core import sharding
from egmae_jax.data import duplicates
from egmae_jax.data.phantoms import CLASSES, phantom
from egmae_jax.data.pipeline import Images, StreamedSteps
from egmae_jax.evaluation import probe
from egmae_jax.method import augment
from egmae_jax.models.convnext import ConvNeXt
from egmae_jax.models.init import initial_variables
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.run import default_config
from egmae_jax.run.features import pooled
from egmae_jax.training import loop, optim, pretrain
from egmae_jax.training.state import TrainState

SIZE, BATCH, STEPS = 32, 16, 256
rng = np.random.default_rng(0)
labels = np.arange(300) % 3
labelled = np.stack([phantom(rng, CLASSES[label], SIZE, SIZE) for label in labels])
train, test = slice(0, 150), slice(150, 300)
unlabelled = np.stack([phantom(rng, CLASSES[k % 3], SIZE, SIZE) for k in range(299)])
unlabelled = np.concatenate([unlabelled, labelled[-1:, :, ::-1]])

# %% Near-duplicates of test images, also mirrored ones, must not be trained on.
pictures = [PIL.Image.fromarray(pixels) for pixels in (*labelled[test], *unlabelled)]
pairs = duplicates.duplicate_pairs(
    np.stack([duplicates.descriptor(picture) for picture in pictures]),
    [duplicates.pixel_hash(picture) for picture in pictures],
)
groups = duplicates.group_ids(len(pictures), pairs)
leaks = np.isin(groups[150:], groups[:150])
print(
    f"{leaks.sum()} of {len(leaks)} unlabelled images left out, as near-duplicates of test images"
)
images = unlabelled[~leaks][..., None]  # uint8 [N, H, W, 1]; a batch may also have 3 channels

# %% A masked autoencoder learns to remove the noise. This one is small, so that it compiles fast.
config = default_config.get_config()
config.data.image_size = SIZE
config.corruption.patch_size, config.corruption.scale = 8, 0.05
model = MaskedAutoencoder(ConvNeXt((1, 1, 1, 1), (16, 32, 48, 64), num_classes=1), decoder_dim=32)
start = initial_variables(model, 0, kernel_init="fan_in", layer_scale=0.1)
schedule = optim.cosine_schedule(2e-3, total_steps=STEPS, warmup_steps=8)
optimizer = optim.adamw(schedule, start["params"], weight_decay=0.05, betas=(0.9, 0.95))
step = functools.partial(pretrain.pretrain_step, model=model, optimizer=optimizer, config=config)
chosen = rng.integers(0, len(images), (STEPS, BATCH))
sizes = np.full((STEPS, BATCH, 2), SIZE, np.int32)
batches = StreamedSteps(Images(images[chosen], sizes, np.zeros_like(chosen)), np.int32(0))
mesh = sharding.make_mesh()
program = loop.compile_steps(step, mesh)
state, metrics = program(
    TrainState.create(start, optimizer, mesh), batches, jax.random.key(0), STEPS
)
losses = np.asarray(metrics["loss"])[:STEPS]
print(
    f"reconstruction loss {losses[:8].mean():.3f} at the start, {losses[-8:].mean():.3f} at the end"
)

# %% Features of the encoder, for a linear probe and the nearest neighbours.
features = jax.jit(
    lambda params, images: pooled(model.encoder, {"params": params}, augment.normalize(images))
)
for name, params in (("random weights", start["params"]), ("pre-trained", state.params)):
    x = np.asarray(features(params["encoder"], np.repeat(labelled[..., None], 3, axis=-1)))
    scores = probe.score(x[train], labels[train], x[test], labels[test])
    print(
        f"{name}: {x.shape[1]} features, probe accuracy {scores['probe_accuracy']:.3f}, "
        f"of nearest neighbours {scores['knn_accuracy']:.3f}"
    )
