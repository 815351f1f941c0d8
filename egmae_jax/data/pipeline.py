"""From records to arrays on the device, and the order in which training visits them."""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from egmae_jax.data import images
from egmae_jax.data.prepare import Prepared


class Images(NamedTuple):
    """Decoded images; numpy arrays on the host, jax arrays on the device."""

    pixels: Any  # uint8 [N, H, W, 3], each image in the upper left corner
    sizes: Any  # int32 [N, 2], its height and width
    labels: Any  # int32 [N]

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, indices: jax.Array | np.ndarray) -> "Images":
        """The batch at `indices` [B]."""
        return Images(self.pixels[indices], self.sizes[indices], self.labels[indices])


def load_training(
    prepared: Prepared, indices: np.ndarray, *, resize: images.Resize, store_size: int
) -> Images:
    """Decodes images for random crops, on a common canvas (see `images.training_view`)."""
    return _load(prepared, indices, lambda x: images.training_view(x, resize, store_size))


def load_evaluation(
    prepared: Prepared, indices: np.ndarray, *, resize: images.Resize, image_size: int
) -> Images:
    """Decodes images as they are evaluated: [N, image_size, image_size, 3]."""
    return _load(prepared, indices, lambda x: images.evaluation_view(x, resize, image_size))


def _load(prepared: Prepared, indices: np.ndarray, view: Callable) -> Images:
    def read(index: int) -> np.ndarray:
        encoded = prepared.records[index]["image"]
        return images.to_array(view(images.decode(encoded)))

    # Grain keeps the order whatever the number of threads; Pillow decodes outside the GIL.
    options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=64)
    dataset = grain.MapDataset.source(np.asarray(indices).tolist()).map(read)
    arrays = list(dataset.to_iter_dataset(options))
    sizes = np.array([x.shape[:2] for x in arrays], np.int32)
    pixels = np.zeros((len(arrays), *sizes.max(axis=0), 3), np.uint8)
    for canvas, array in zip(pixels, arrays, strict=True):
        canvas[: array.shape[0], : array.shape[1]] = array
    return Images(pixels, sizes, prepared.labels[indices].astype(np.int32))


class Order:
    """The order of training: which examples make up the batch of any step.

    The examples are shuffled anew each epoch and the epochs joined into one stream, which is cut
    into batches: no batch is smaller than the others and no example is left out for good. The batch
    of a step depends on the seed and the step alone, so resuming needs no state.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: tuple[int, ...]):
        self._num_examples, self._batch_size, self._seed = num_examples, batch_size, seed
        # A batch reaches into two epochs at most, unless the set is smaller than a batch.
        self._epoch = functools.lru_cache(maxsize=4)(self._shuffle)

    def __getitem__(self, step: int) -> np.ndarray:
        """int32 [batch_size]: the examples of this step, counted from 0."""
        positions = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, offsets = np.divmod(positions, self._num_examples)
        parts = [self._epoch(int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([*self._seed, epoch])
        return rng.permutation(self._num_examples).astype(np.int32)
