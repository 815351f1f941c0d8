"""The training steps of a ConvNeXt in plain Flax Linen and optax, as a peer.

The peer of `benchmarks.aot`. Crops are given; what follows is the paper's arithmetic.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import FrozenConfigDict

from benchmarks.inputs import NUM_CLASSES
from egmae_jax import models
from egmae_jax.method.augment import MEAN, STD

PyTree = Any
STRIDE = 32


class Block(nn.Module):
    """ConvNeXt block."""

    dtype: Any
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the block to features [B, H, W, C]."""
        channels = x.shape[-1]
        y = nn.Conv(channels, (7, 7), feature_group_count=channels, dtype=self.dtype)(x)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(y)
        y = nn.Dense(4 * channels, dtype=self.dtype)(y)
        y = nn.gelu(y, approximate=False)
        y = nn.Dense(channels, dtype=self.dtype)(y)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (channels,))
        y = y * gamma.astype(self.dtype)
        drop = nn.Dropout(self.drop_path_rate, broadcast_dims=(1, 2, 3), rng_collection="drop_path")
        return x + drop(y, deterministic=not train)


class Encoder(nn.Module):
    """ConvNeXt without its head."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    drop_path_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns features [B, H/32, W/32, D] of images [B, H, W, 3]."""
        rates = iter(np.linspace(0, self.drop_path_rate, sum(self.depths)).tolist())
        for stage, (depth, dim) in enumerate(zip(self.depths, self.dims, strict=True)):
            norm, size = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype), 2 if stage else 4
            conv = nn.Conv(dim, (size, size), (size, size), padding="VALID", dtype=self.dtype)
            x = conv(norm(x)) if stage else norm(conv(x))
            for _ in range(depth):
                x = Block(self.dtype, next(rates))(x, train=train)
        return x


class Classifier(nn.Module):
    """ConvNeXt classifier."""

    encoder: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits [B, classes] of images [B, H, W, 3]."""
        x = self.encoder(x, train=train).astype(jnp.float32).mean((1, 2))
        return nn.Dense(NUM_CLASSES)(nn.LayerNorm(epsilon=1e-6)(x))


class Autoencoder(nn.Module):
    """Masked autoencoder, as `egmae_jax.models.mae`."""

    encoder: nn.Module
    dim: int
    depth: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        """Returns reconstructions [B, H, W, 3], given corrupted images and their mask."""
        y = nn.Dense(self.dim, dtype=self.dtype)(self.encoder(x, train=train))
        batch, rows, columns, _ = y.shape
        cells = mask.reshape(batch, rows, mask.shape[1] // rows, columns, -1).mean((2, 4))
        y += nn.Dense(self.dim, use_bias=False, dtype=self.dtype)(cells[..., None])
        for _ in range(self.depth):
            y = Block(self.dtype)(y, train=train)
        y = nn.Dense(STRIDE * STRIDE * 3)(y).reshape(batch, rows, columns, STRIDE, STRIDE, 3)
        return y.swapaxes(2, 3).reshape(x.shape)


def normalize(pixels: jax.Array) -> jax.Array:
    """Converts uint8 to float32 with ImageNet's mean and standard deviation."""
    return (pixels / 255.0 - jnp.array(MEAN)) / jnp.array(STD)


def patch_entropy(pixels: jax.Array, patch: int) -> jax.Array:
    """Returns the Shannon entropy of each patch in nats, averaged over channels: [B, H/P, W/P]."""
    batch, height, width, channels = pixels.shape
    x = pixels.reshape(batch, height // patch, patch, width // patch, patch, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4).reshape(-1, patch * patch)
    p = jax.vmap(lambda row: jnp.bincount(row, length=256))(x) / patch**2
    entropy = -jax.scipy.special.xlogy(p, p).sum(-1)
    return entropy.reshape(batch, height // patch, width // patch, channels).mean(-1)


def make_step(work: str, config: FrozenConfigDict, batch: int) -> tuple[Any, tuple[Any, ...]]:
    """Returns a training step or inference, and the shapes of its arguments.

    The step takes and returns (parameters, optimizer state), and takes uint8 crops, labels and a
    random key.
    """
    size, patch = config.data.image_size, config.corruption.patch_size
    dtype = jnp.dtype(config.model.dtype)
    ours: Any = models.create(config.model.name, NUM_CLASSES)
    rate = config.finetune.drop_path_rate if work == "train" else 0.0
    encoder = Encoder(ours.depths, ours.dims, rate, dtype)
    model: Any = Classifier(encoder)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    inputs = [image]
    if work == "pretrain":
        model = Autoencoder(encoder, config.decoder.dim, config.decoder.depth, dtype)
        inputs.append(jax.ShapeDtypeStruct((1, size // patch, size // patch), jnp.float32))
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda k, *x: model.init(k, *x, train=False), key, *inputs)["params"]
    pixels = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def predict(params, pixels):
        return jax.nn.softmax(model.apply({"params": params}, normalize(pixels), train=False))

    if work == "inference":
        return predict, (params, pixels)
    section = config.finetune if work == "train" else config.pretrain
    schedule = optax.warmup_cosine_decay_schedule(0.0, section.learning_rate, 10, 10**6)
    decays = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    optimizer = optax.adamw(
        schedule, *section.betas, weight_decay=section.weight_decay, mask=decays
    )

    def classification_loss(params, pixels, labels, key):
        logits = model.apply(
            {"params": params}, normalize(pixels), train=True, rngs={"drop_path": key}
        )
        targets = jax.nn.one_hot(labels, NUM_CLASSES)
        targets = optax.smooth_labels(targets, config.finetune.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    def reconstruction_loss(params, pixels, labels, key):
        entropy, target = patch_entropy(pixels, patch), normalize(pixels)
        mask = (entropy > 0).astype(jnp.float32)
        sigma, weight = (
            jnp.repeat(jnp.repeat(x, patch, 1), patch, 2)[..., None]
            for x in (jnp.sqrt(entropy), mask)
        )
        corrupted = target + sigma * jax.random.normal(key, target.shape)
        output = model.apply({"params": params}, corrupted, mask, train=True)
        return (jnp.square(output - target) * weight).sum() / (3 * weight.sum())

    loss_fn = classification_loss if work == "train" else reconstruction_loss

    def step(state, pixels, labels, key):
        params, opt_state = state
        _, gradients = jax.value_and_grad(loss_fn)(params, pixels, labels, key)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step, ((params, jax.eval_shape(optimizer.init, params)), pixels, labels, key)
