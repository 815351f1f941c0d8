"""From records to arrays on the device, and the order in which training visits them.

A set that fits stays on the device, and a step gathers its batch by index; what does not fit is
streamed by Grain, a block of batches at a time, while the device works. The step function, the
examples of each step, their order and the random numbers are the same in both.
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
from egmae_jax.data.prepare import Prepared
from egmae_jax.data.threads import read_ahead

MAX_STEPS = 256  # steps of one dispatch
# Size of the batches that go to the devices together. Larger arrays take longer a byte: the system
# gives them new memory each time.
_BLOCK_BYTES = 32e6


class Images(NamedTuple):
    """Decoded images; numpy arrays on the host, jax arrays on the device.

    Attributes:
        pixels: uint8 [N, H, W, 3], or [N, H, W, 1] for grey; each image lies in the upper left
            corner of its canvas.
        sizes: int32 [N, 2], height and width of each image.
        labels: int32 [N].
    """

    pixels: Any
    sizes: Any
    labels: Any

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, indices: jax.Array | np.ndarray) -> "Images":
        """Images at `indices`, int [B], as a batch."""
        return Images(self.pixels[indices], self.sizes[indices], self.labels[indices])


class HostStore:
    """Keeps decoded images in the host's memory: as many as fit are decoded once."""

    def __init__(self, max_bytes: float):
        self._bytes_left = max_bytes
        self._images: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the image called `key`, and decodes it if it is not kept."""
        image = self._images.get(key)
        if image is None:
            image = decode()
            with self._lock:
                if key not in self._images and image.nbytes <= self._bytes_left:
                    self._images[key] = image
                    self._bytes_left -= image.nbytes
        return image


class View(NamedTuple):
    """How images are decoded for training or evaluation, onto one canvas.

    Attributes:
        purpose: 'training' or 'evaluation'.
        prepared: the data set.
        color: 'rgb' or 'grey'.
        resize: makes the view of an image.
        size_of: width and height of the view by those of the image.
        canvas: height and width that hold every view.
    """

    purpose: str
    prepared: Prepared
    color: images.Color
    resize: Callable[[PIL.Image.Image], PIL.Image.Image]
    size_of: Callable[[tuple[int, int]], tuple[int, int]]
    canvas: tuple[int, int]

    def load(self, indices: np.ndarray, store: HostStore | None = None) -> Images:
        """Decodes the images at `indices`, in this order; `store` keeps decoded images."""
        batch = self.empty((len(indices),))
        self.load_into(batch, indices, store)
        return batch

    def empty(self, shape: tuple[int, ...]) -> Images:
        """Arrays for images, not initialised."""
        return Images(
            np.empty((*shape, *self.canvas, self._channels), np.uint8),
            np.empty((*shape, 2), np.int32),
            np.empty(shape, np.int32),
        )

    def load_into(self, batch: Images, indices: np.ndarray, store: HostStore | None) -> None:
        """Decodes the images at `indices` into the arrays of `batch`."""
        batch.labels[:] = self.prepared.labels[indices]
        for k, index in enumerate(np.asarray(indices).tolist()):
            decode = functools.partial(self._decode, index)
            image = store.get((self.purpose, index), decode) if store else decode()
            height, width = batch.sizes[k] = image.shape[:2]
            batch.pixels[k, :height, :width] = image
            batch.pixels[k, height:] = 0
            batch.pixels[k, :height, width:] = 0

    def nbytes(self, count: int) -> int:
        """Bytes of the pixels of `count` images on the canvas."""
        return count * self.canvas[0] * self.canvas[1] * self._channels

    @property
    def _channels(self) -> int:
        return 1 if self.color == "grey" else 3

    def _decode(self, index: int) -> np.ndarray:
        array = self.prepared.records.pixels(index, self.color)
        height, width = array.shape[:2]
        if self.size_of((width, height)) == (width, height):
            return array
        return images.to_array(self.resize(images.from_array(array)))


def training_view(
    prepared: Prepared,
    indices: np.ndarray,
    *,
    color: images.Color,
    resize: images.Resize,
    store_size: int,
) -> View:
    """View from which random crops are taken, on a canvas for the images at `indices`.

    The arguments are those of `images.training_view`.
    """

    def size_of(size: tuple[int, int]) -> tuple[int, int]:
        return images.training_size(size, resize, store_size)

    sizes = [size_of((w, h)) for h, w in np.unique(prepared.sizes[indices], axis=0).tolist()]
    width, height = np.max(sizes, axis=0).tolist()
    view = functools.partial(images.training_view, resize=resize, store_size=store_size)
    return View("training", prepared, color, view, size_of, (height, width))


def evaluation_view(
    prepared: Prepared,
    *,
    color: images.Color,
    resize: images.Resize,
    image_size: int,
    resized: int | None = None,
) -> View:
    """View that is evaluated, a square; the arguments are those of `images.evaluation_view`."""
    view = functools.partial(
        images.evaluation_view, resize=resize, image_size=image_size, resized=resized
    )
    square = (image_size, image_size)
    return View("evaluation", prepared, color, view, lambda size: square, square)


def load(view: View, indices: np.ndarray) -> Images:
    """Decodes all images at `indices`, by as many threads as there are cores."""
    loaded, size = view.empty((len(indices),)), 16

    def fill(i: int) -> int:
        chunk = slice(size * i, size * (i + 1))
        view.load_into(Images(*(x[chunk] for x in loaded)), indices[chunk], store=None)
        return i

    for _ in read_ahead(fill, 0, math.ceil(len(indices) / size)):
        pass
    return loaded


# --- Training ------------------------------------------------------------------------------------


@struct.dataclass
class ResidentSteps:
    """Batches of some steps, as indices [MAX_STEPS, B] into images on the device."""

    images: Images
    indices: Any

    def batch(self, i: jax.Array, mesh: Mesh) -> Images:
        """Batch of step i, split over the devices of a mesh; called inside jit."""
        # NumPy's own under JAX_DEBUG_NANS, which runs the step again outside jit.
        indices = jnp.asarray(self.indices)[i]
        batch = self.images.take(sharding.split_batch(indices, mesh))
        return sharding.split_batch(batch, mesh)


@struct.dataclass
class StreamedSteps:
    """Batches of some steps, from `offset` on in a block of images [steps, B, ...]."""

    images: Images
    offset: Any

    def batch(self, i: jax.Array, mesh: Mesh) -> Images:
        """Batch of step i, split over the devices of a mesh; called inside jit."""
        return sharding.split_batch(Images(*(x[self.offset + i] for x in self.images)), mesh)


class Resident:
    """Feeds training from images that are on the device, in a given order."""

    def __init__(self, images: Images, order: "Order"):
        self._images, self._order = images, order

    def steps(self, first: int, at_most: int) -> tuple[int, ResidentSteps]:
        """Returns how many steps from `first` on are fed, up to `at_most`, and their batches."""
        count = min(at_most, MAX_STEPS)
        indices = np.zeros((MAX_STEPS, self._order.batch_size), np.int32)
        indices[:count] = [self._order[first + i] for i in range(count)]
        return count, ResidentSteps(self._images, indices)


class Stream:
    """Feeds training from records, decoded ahead while the device works.

    Each host reads the rows of a batch that its devices train on.

    Args:
        view: how images are decoded.
        indices: training images among those of `view`; `order` counts these.
        order: which images make up each batch.
        total_steps: number of steps of the stage.
        mesh: devices over which batches are split.
        store: keeps decoded images; None: each is decoded whenever it is fed.
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
        self._offset = self._block_steps  # of the next step in the block on the devices

    def steps(self, first: int, at_most: int) -> tuple[int, StreamedSteps]:
        """Returns how many steps from `first` on are fed, up to `at_most`, and their batches."""
        if first != self._next:
            self._blocks, self._offset = self._read_blocks(first), self._block_steps
        if self._offset == self._block_steps:
            self._block, self._offset = next(self._blocks), 0
        count = min(at_most, self._block_steps - self._offset)
        steps = StreamedSteps(self._block, np.int32(self._offset))
        self._next, self._offset = first + count, self._offset + count
        return count, steps

    def _read_blocks(self, start: int) -> Iterator[Images]:
        """Yields blocks of the batches from `start` on, on the devices, all of one shape."""
        rows = sharding.local_rows(self._order.batch_size, self._mesh)
        blocks: collections.defaultdict[int, Images] = collections.defaultdict(
            lambda: self._view.empty((self._block_steps, len(rows)))
        )
        lock = threading.Lock()

        def load(step: int) -> int:
            number, place = divmod(step - start, self._block_steps)
            with lock:
                block = blocks[number]
            indices = self._indices[self._order[step][rows]]
            self._view.load_into(Images(*(x[place] for x in block)), indices, self._store)
            return step

        for step in read_ahead(load, start, self._total_steps):
            number, place = divmod(step - start, self._block_steps)
            if place == self._block_steps - 1 or step == self._total_steps - 1:
                yield sharding.place_batches(blocks.pop(number), self._mesh)


class Order:
    """Order of training: which examples make up the batch of any step.

    The examples are shuffled anew each epoch and the epochs joined into one stream, which is cut
    into batches: no batch is smaller than the others and no example is left out for good. The batch
    of a step depends on the seed and the step alone, so resuming needs no state.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: tuple[int, ...]):
        self.batch_size = batch_size
        self._num_examples, self._seed = num_examples, seed
        # A batch reaches into two epochs at most, unless the set is smaller than a batch.
        self._epoch = functools.lru_cache(maxsize=4)(self._shuffle)

    def __getitem__(self, step: int) -> np.ndarray:
        """Examples of a step, int32 [batch_size], counted from 0."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, self._num_examples)
        parts = [self._epoch(int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([*self._seed, epoch])
        return rng.permutation(self._num_examples).astype(np.int32)


# --- Evaluation ----------------------------------------------------------------------------------


class Evaluation:
    """Feeds evaluation with every image of a part once, in batches of one shape.

    Args:
        view: how images are decoded.
        indices: images of the part among those of `view`.
        mesh: devices over which batches are split.
        resident: whether the images are kept on the devices.
        store: keeps decoded images that are not resident; None: each is decoded every time.
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
        """Yields images, the indices of a batch among them [B], and its validity float32 [B].

        The last batch is filled up with its first image, of validity 0, so that every image counts
        exactly once.
        """
        count = math.ceil(len(self) / batch_size)
        wanted = np.arange(count * batch_size, dtype=np.int32).reshape(count, batch_size)
        valid = (wanted < len(self)).astype(np.float32)
        positions = np.where(valid, wanted, wanted[:, :1])
        if self._resident is not None:
            for i in range(count):
                yield self._resident, positions[i], valid[i]
            return
        within = np.arange(batch_size, dtype=np.int32)
        loaded = read_ahead(
            lambda i: self._view.load(self._indices[positions[i]], self._store), 0, count
        )
        for i, batch in enumerate(loaded):
            yield sharding.replicate(batch, self._mesh), within, valid[i]
