"""Feeds batches of images to the devices, and defines the order of the training images.

A training set that fits is kept on the devices, and each step gathers its batch by index. A larger
one is streamed from the records, a block of batches at a time, while the devices compute. Both use
the same step function, images, order and random numbers.
"""

import collections
import functools
import math
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from flax import struct
from jax.sharding import Mesh

from egmae_jax.core import sharding
from egmae_jax.data import images
from egmae_jax.data.prepare import ImageSet
from egmae_jax.data.threads import read_ahead

MAX_STEPS = 256  # largest number of steps per dispatch
# Size of a block of batches. Larger arrays take longer per byte to transfer, because the system
# allocates new memory for them each time.
_BLOCK_BYTES = 32e6


class Images(NamedTuple):
    """A batch or set of decoded images: NumPy arrays on the host, JAX arrays on the devices.

    Attributes:
        pixels: uint8 [N, H, W, 3], or [N, H, W, 1] for grey; each image is in the upper left corner
            of its canvas, and the rest is 0.
        sizes: int32 [N, 2], height and width of each image.
        labels: int32 [N], class of each image.
    """

    pixels: Any
    sizes: Any
    labels: Any

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, indices: jax.Array | np.ndarray) -> "Images":
        """Returns the images at `indices`, int [B]."""
        return Images(self.pixels[indices], self.sizes[indices], self.labels[indices])


class HostStore:
    """Cache of decoded images in the host's memory.

    Args:
        max_bytes: size of the cache; images that do not fit are decoded again at each use.
    """

    def __init__(self, max_bytes: float):
        self._bytes_left = max_bytes
        self._images: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the cached image of `key`; calls `decode`, and caches its result, if missing."""
        image = self._images.get(key)
        if image is None:
            image = decode()
            with self._lock:
                if key not in self._images and image.nbytes <= self._bytes_left:
                    self._images[key] = image
                    self._bytes_left -= image.nbytes
        return image


class View(NamedTuple):
    """Decodes and resizes images for training or evaluation, on canvases of one size.

    Attributes:
        purpose: 'training' or 'evaluation'.
        prepared: the images.
        color: 'rgb' or 'grey'.
        resize: function that makes the view of an image.
        canvas: height and width of the canvas, at least those of every view.
    """

    purpose: str
    prepared: ImageSet
    color: images.Color
    resize: Callable[[PIL.Image.Image], PIL.Image.Image]
    canvas: tuple[int, int]

    def load(self, indices: np.ndarray, store: HostStore | None = None) -> Images:
        """Decodes the images at `indices`, int [B]; `store` caches decoded images."""
        batch = self.empty((len(indices),))
        self.load_into(batch, indices, store)
        return batch

    def empty(self, shape: tuple[int, ...]) -> Images:
        """Returns uninitialised arrays for images; `shape` is that of the labels, such as (B,)."""
        return Images(
            np.empty((*shape, *self.canvas, self._channels), np.uint8),
            np.empty((*shape, 2), np.int32),
            np.empty(shape, np.int32),
        )

    def load_into(self, batch: Images, indices: np.ndarray, store: HostStore | None) -> None:
        """Decodes the images at `indices`, int [B], into the arrays of `batch`."""
        batch.labels[:] = self.prepared.labels[indices]
        for k, index in enumerate(np.asarray(indices).tolist()):
            decode = functools.partial(self._decode, index)
            image = store.get((self.purpose, index), decode) if store else decode()
            height, width = batch.sizes[k] = image.shape[:2]
            batch.pixels[k, :height, :width] = image
            batch.pixels[k, height:] = 0
            batch.pixels[k, :height, width:] = 0

    def nbytes(self, count: int) -> int:
        """Returns the size in bytes of the canvases of `count` images."""
        return count * self.canvas[0] * self.canvas[1] * self._channels

    @property
    def _channels(self) -> int:
        return 1 if self.color == "grey" else 3

    def _decode(self, index: int) -> np.ndarray:
        image = images.from_array(self.prepared.records.pixels(index, self.color))
        return images.to_array(self.resize(image))


def training_view(
    prepared: ImageSet,
    indices: np.ndarray,
    *,
    color: images.Color,
    resize: images.Resize,
    store_size: int,
) -> View:
    """Returns the view from which random crops are taken.

    Args:
        prepared: the images.
        indices: indices of the images that the canvas must be large enough for.
        color: 'rgb' or 'grey'.
        resize: resize mode; see `images.training_view`.
        store_size: length of the shorter side in pixels; see `images.training_view`.
    """
    sizes = [
        images.training_size((width, height), resize, store_size)
        for height, width in np.unique(prepared.sizes[indices], axis=0).tolist()
    ]
    width, height = np.max(sizes, axis=0).tolist()
    view = functools.partial(images.training_view, resize=resize, store_size=store_size)
    return View("training", prepared, color, view, (height, width))


def evaluation_view(
    prepared: ImageSet,
    *,
    color: images.Color,
    resize: images.Resize,
    image_size: int,
    resized: int | None = None,
) -> View:
    """Returns the square view for evaluation.

    Args:
        prepared: the images.
        color: 'rgb' or 'grey'.
        resize: resize mode; see `images.evaluation_view`.
        image_size: side of the view in pixels.
        resized: side before the centre crop; see `images.evaluation_view`.
    """
    view = functools.partial(
        images.evaluation_view, resize=resize, image_size=image_size, resized=resized
    )
    return View("evaluation", prepared, color, view, (image_size, image_size))


def load(view: View, indices: np.ndarray) -> Images:
    """Decodes all images at `indices`, int [N], with one thread per core."""
    result, chunk_size = view.empty((len(indices),)), 16

    def fill(i: int) -> int:
        chunk = slice(chunk_size * i, chunk_size * (i + 1))
        view.load_into(Images(*(x[chunk] for x in result)), indices[chunk], store=None)
        return i

    for _ in read_ahead(fill, 0, math.ceil(len(indices) / chunk_size)):
        pass
    return result


# --- Training ------------------------------------------------------------------------------------


@struct.dataclass
class ResidentSteps:
    """Batches of one dispatch, as indices into images on the devices.

    Attributes:
        images: all training images, on the devices.
        indices: int32 [MAX_STEPS, B], images of each step's batch.
    """

    images: Images
    indices: Any

    def batch(self, i: jax.Array, mesh: Mesh) -> Images:
        """Returns the batch of step i, split over the devices of a mesh; called inside jit."""
        # A NumPy array if JAX_DEBUG_NANS is set, which runs the step again outside jit.
        indices = jnp.asarray(self.indices)[i]
        batch = self.images.take(sharding.split_batch(indices, mesh))
        return sharding.split_batch(batch, mesh)


@struct.dataclass
class StreamedSteps:
    """Batches of one dispatch, in a block of batches on the devices.

    Attributes:
        images: images of the block, with arrays [steps, B, ...].
        offset: index in the block of the first batch of the dispatch.
    """

    images: Images
    offset: Any

    def batch(self, i: jax.Array, mesh: Mesh) -> Images:
        """Returns the batch of step i, split over the devices of a mesh; called inside jit."""
        return sharding.split_batch(Images(*(x[self.offset + i] for x in self.images)), mesh)


class Resident:
    """Feeds training from images that are on the devices.

    Args:
        images: all training images, on the devices.
        order: images of each batch.
        rows: position in `images` of each image that the order counts, int [N]; None: all images.
    """

    def __init__(self, images: Images, order: "Order", rows: np.ndarray | None = None):
        self._images, self._order, self._rows = images, order, rows

    def steps(self, first: int, at_most: int) -> tuple[int, ResidentSteps]:
        """Returns the number of steps of the next dispatch, and their batches.

        Args:
            first: first step of the dispatch.
            at_most: upper limit of the number of steps.
        """
        count = min(at_most, MAX_STEPS)
        indices = np.zeros((MAX_STEPS, self._order.batch_size), np.int32)
        indices[:count] = [self._order[first + i] for i in range(count)]
        if self._rows is not None:
            indices = self._rows[indices].astype(np.int32)
        return count, ResidentSteps(self._images, indices)


class Stream:
    """Feeds training from records, which threads decode ahead while the devices compute.

    Each host reads only the rows of a batch that its own devices train on.

    Args:
        view: decodes the images.
        indices: indices of the training images in the data set, int [N].
        order: images of each batch, as positions in `indices`.
        total_steps: number of steps of the stage.
        mesh: devices over which batches are split.
        store: cache of decoded images; None: images are decoded at each use.
    """

    def __init__(
        self,
        view: View,
        indices: np.ndarray,
        order: "Order",
        total_steps: int,
        mesh: Mesh,
        store: HostStore | None = None,
    ):
        self._view, self._indices, self._order = view, np.asarray(indices), order
        self._total_steps, self._mesh, self._store = total_steps, mesh, store
        batches = int(_BLOCK_BYTES // view.nbytes(order.batch_size))
        self._block_steps = max(1, min(batches, MAX_STEPS, total_steps))
        self._next: int | None = None
        self._blocks: Iterator[Images] = iter(())
        self._offset = self._block_steps  # index of the next step in the block on the devices

    def steps(self, first: int, at_most: int) -> tuple[int, StreamedSteps]:
        """Returns the number of steps of the next dispatch, and their batches.

        Args:
            first: first step of the dispatch; reading starts again if it is not the next one.
            at_most: upper limit of the number of steps.
        """
        if first != self._next:
            self._blocks, self._offset = self._read_blocks(first), self._block_steps
        if self._offset == self._block_steps:
            self._block, self._offset = next(self._blocks), 0
        count = min(at_most, self._block_steps - self._offset)
        steps = StreamedSteps(self._block, np.int32(self._offset))
        self._next, self._offset = first + count, self._offset + count
        return count, steps

    def _read_blocks(self, start: int) -> Iterator[Images]:
        """Yields blocks of batches on the devices, all of one shape, beginning at step `start`."""
        rows = sharding.local_rows(self._order.batch_size, self._mesh)
        blocks: collections.defaultdict[int, Images] = collections.defaultdict(
            lambda: self._view.empty((self._block_steps, len(rows)))
        )
        lock = threading.Lock()

        def load(step: int) -> int:
            number, offset = divmod(step - start, self._block_steps)
            with lock:
                block = blocks[number]
            indices = self._indices[self._order[step][rows]]
            self._view.load_into(Images(*(x[offset] for x in block)), indices, self._store)
            return step

        for step in read_ahead(load, start, self._total_steps):
            number, offset = divmod(step - start, self._block_steps)
            if offset == self._block_steps - 1 or step == self._total_steps - 1:
                yield sharding.place_batches(blocks.pop(number), self._mesh)


class Order:
    """Images of the batch of each training step.

    The images are shuffled again in each epoch, and the epochs are joined to one stream that is cut
    into batches, so that all batches have the same size and no image is dropped. The batch depends
    only on the seed and the step, so resuming needs no state.

    Args:
        num_examples: number of training images.
        batch_size: number of images per step.
        seed: integers that seed the shuffling.
        weights: relative frequencies of the images, float [num_examples]; each epoch then draws as
            many images as there are, with replacement, as torch's WeightedRandomSampler does. None:
            each image occurs once per epoch.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        seed: tuple[int, ...],
        weights: np.ndarray | None = None,
    ):
        self.batch_size = batch_size
        self._num_examples, self._seed = num_examples, seed
        self._shares = None if weights is None else weights / weights.sum()
        # A batch contains images of at most two epochs, unless the set is smaller than a batch.
        self._epoch = functools.lru_cache(maxsize=4)(self._shuffle)

    def __getitem__(self, step: int) -> np.ndarray:
        """Returns the images of a step, int32 [batch_size], counted from 0."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, self._num_examples)
        parts = [self._epoch(int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([*self._seed, epoch])
        if self._shares is not None:
            drawn = rng.choice(self._num_examples, self._num_examples, p=self._shares)
            return drawn.astype(np.int32)
        return rng.permutation(self._num_examples).astype(np.int32)


# --- Evaluation ----------------------------------------------------------------------------------


def pad_batch(batch: np.ndarray, size: int) -> np.ndarray:
    """Pads a batch with zeros, so that all batches have one shape and share a compiled program.

    Args:
        batch: array [n, ...] with n from 0 to `size`.
        size: number of rows of the result, [size, ...]; callers drop what they compute of the
            padding.
    """
    return np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), batch.dtype)])


class Evaluation:
    """Feeds evaluation with each image of a part once, in batches of one shape.

    Args:
        view: decodes the images.
        indices: indices of the part's images in the data set, int [N].
        mesh: devices over which batches are split.
        resident: whether to keep the images on the devices.
        store: cache of decoded images if they are not resident; None: images are decoded at each
            use.
    """

    def __init__(
        self,
        view: View,
        indices: np.ndarray,
        mesh: Mesh,
        *,
        resident: bool,
        store: HostStore | None = None,
    ):
        self._view, self._indices, self._mesh, self._store = view, np.asarray(indices), mesh, store
        self._resident = sharding.replicate(load(view, indices), mesh) if resident else None

    def __len__(self) -> int:
        return len(self._indices)

    def batches(self, batch_size: int) -> Iterator[tuple[Images, np.ndarray, np.ndarray]]:
        """Yields images, the indices of a batch in them, int32 [B], and its mask, float32 [B].

        The last batch is padded with the first image. The mask is 0 for padding and 1 for all other
        images, so that each image counts once.
        """
        count = math.ceil(len(self) / batch_size)
        indices, mask = (
            pad_batch(rows, count * batch_size).reshape(count, batch_size)
            for rows in (np.arange(len(self), dtype=np.int32), np.ones(len(self), np.float32))
        )
        if self._resident is not None:
            for i in range(count):
                yield self._resident, indices[i], mask[i]
            return
        all_rows = np.arange(batch_size, dtype=np.int32)
        batches = read_ahead(
            lambda i: self._view.load(self._indices[indices[i]], self._store), 0, count
        )
        for i, loaded in enumerate(batches):
            yield sharding.replicate(loaded, self._mesh), all_rows, mask[i]
