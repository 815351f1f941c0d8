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

MAX_STEPS = 256  # of one dispatch
# Of the batches that go to the devices together. Larger arrays take longer a byte: the system gives
# them new memory each time.
_BLOCK_BYTES = 32e6


class Images(NamedTuple):
    """Decoded images; numpy arrays on the host, jax arrays on the device."""

    pixels: Any  # uint8 [N, H, W, 3], or 1 for grey; each image in the upper left corner
    sizes: Any  # int32 [N, 2], its height and width
    labels: Any  # int32 [N]

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, indices: jax.Array | np.ndarray) -> "Images":
        """The batch at `indices` [B]."""
        return Images(self.pixels[indices], self.sizes[indices], self.labels[indices])


class HostStore:
    """Decoded images in the host's memory: as many as fit are decoded once."""

    def __init__(self, max_bytes: float):
        self._bytes_left = max_bytes
        self._images: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The image called `key`, decoded if it is not here."""
        image = self._images.get(key)
        if image is None:
            image = decode()
            with self._lock:
                if key not in self._images and image.nbytes <= self._bytes_left:
                    self._images[key] = image
                    self._bytes_left -= image.nbytes
        return image


class View(NamedTuple):
    """How images are decoded for a purpose, onto one canvas."""

    purpose: str
    prepared: Prepared
    color: images.Color
    resize: Callable[[PIL.Image.Image], PIL.Image.Image]
    size_of: Callable[[tuple[int, int]], tuple[int, int]]  # width and height before, and after
    canvas: tuple[int, int]  # height, width

    def load(self, indices: np.ndarray, store: HostStore | None = None) -> Images:
        """Images on the canvas, in the asked order."""
        batch = self.empty((len(indices),))
        self.load_into(batch, indices, store)
        return batch

    def empty(self, shape: tuple[int, ...]) -> Images:
        """Room for images."""
        return Images(
            _empty((*shape, *self.canvas, self._channels), np.uint8),
            _empty((*shape, 2), np.int32),
            _empty(shape, np.int32),
        )

    def load_into(self, batch: Images, indices: np.ndarray, store: HostStore | None) -> None:
        """Images on the canvas, in the asked order, into arrays that are there."""
        batch.labels[:] = self.prepared.labels[indices]
        for k, index in enumerate(np.asarray(indices).tolist()):
            decode = functools.partial(self._decode, index)
            image = store.get((self.purpose, index), decode) if store else decode()
            height, width = batch.sizes[k] = image.shape[:2]
            batch.pixels[k, :height, :width] = image
            batch.pixels[k, height:] = 0
            batch.pixels[k, :height, width:] = 0

    def nbytes(self, count: int) -> int:
        """Bytes of `count` images on the canvas."""
        return count * self.canvas[0] * self.canvas[1] * self._channels

    @property
    def _channels(self) -> int:
        return 1 if self.color == "grey" else 3

    def _decode(self, index: int) -> np.ndarray:
        array = self.prepared.records.pixels(index, self.color)
        height, width = array.shape[:2]
        if self.size_of((width, height)) == (width, height):  # no resizing
            return array
        return images.to_array(self.resize(images.from_array(array)))


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """np.empty, at an address from which JAX takes arrays to a CPU without copying them."""
    count, alignment = math.prod(shape) * np.dtype(dtype).itemsize, 64
    room = np.empty(count + alignment, np.uint8)
    start = -room.ctypes.data % alignment
    return room[start : start + count].view(dtype).reshape(shape)


def training_view(
    prepared: Prepared,
    indices: np.ndarray,
    *,
    color: images.Color,
    resize: images.Resize,
    store_size: int,
) -> View:
    """For random crops (see `images.training_view`); the canvas fits the images at `indices`."""
    options: dict[str, Any] = {"resize": resize, "store_size": store_size}
    size_of: Callable[[tuple[int, int]], tuple[int, int]] = functools.partial(
        images.training_size, **options
    )
    sizes = [size_of((w, h)) for h, w in np.unique(prepared.sizes[indices], axis=0).tolist()]
    width, height = np.max(sizes, axis=0).tolist()
    view = functools.partial(images.training_view, **options)
    return View("training", prepared, color, view, size_of, (height, width))


def evaluation_view(
    prepared: Prepared,
    *,
    color: images.Color,
    resize: images.Resize,
    image_size: int,
    resized: int | None = None,
) -> View:
    """As images are evaluated, image_size x image_size: see `images.evaluation_view`."""
    view = functools.partial(
        images.evaluation_view, resize=resize, image_size=image_size, resized=resized
    )
    square = (image_size, image_size)
    return View("evaluation", prepared, color, view, lambda size: square, square)


def load(view: View, indices: np.ndarray) -> Images:
    """Decodes all images at `indices`, by as many threads as there are cores."""
    images, size = view.empty((len(indices),)), 16

    def fill(i: int) -> int:
        chunk = slice(size * i, size * (i + 1))
        view.load_into(Images(*(x[chunk] for x in images)), indices[chunk], store=None)
        return i

    for _ in read_ahead(fill, 0, math.ceil(len(indices) / size)):
        pass
    return images


# --- Training ------------------------------------------------------------------------------------


@struct.dataclass
class ResidentSteps:
    """The batches of some steps, as indices [MAX_STEPS, B] into images on the device."""

    images: Images
    indices: Any

    def batch(self, i: jax.Array, mesh: Mesh) -> Images:
        """Inside jit: the batch of step i, split over the devices."""
        # NumPy's own under JAX_DEBUG_NANS, which runs the step again outside jit.
        indices = jnp.asarray(self.indices)[i]
        batch = self.images.take(sharding.split_batch(indices, mesh))
        return sharding.split_batch(batch, mesh)


@struct.dataclass
class StreamedSteps:
    """The batches of some steps themselves, in a block [steps, B, ...], and where they begin."""

    images: Images
    offset: Any

    def batch(self, i: jax.Array, mesh: Mesh) -> Images:
        """Inside jit: the batch of step i, split over the devices."""
        return sharding.split_batch(Images(*(x[self.offset + i] for x in self.images)), mesh)


class Resident:
    """Feeds steps from images that are on the device."""

    def __init__(self, images: Images, order: "Order"):
        self._images, self._order = images, order

    def steps(self, first: int, at_most: int) -> tuple[int, ResidentSteps]:
        """The batches of steps `first` and following, and how many there are."""
        count = min(at_most, MAX_STEPS)
        indices = np.zeros((MAX_STEPS, self._order.batch_size), np.int32)
        indices[:count] = [self._order[first + i] for i in range(count)]
        return count, ResidentSteps(self._images, indices)


class Stream:
    """Feeds steps from records, decoded ahead while the device works; each host reads its rows.

    Args:
        view: how images are decoded.
        indices: of the images in `view`, which `order` counts.
        order: of training.
        total_steps: of the stage.
        mesh: batches are split over its devices.
        store: keeps decoded images.
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
        """The batches of steps `first` and following, and how many there are."""
        if first != self._next:
            self._blocks, self._offset = self._read_blocks(first), self._block_steps
        if self._offset == self._block_steps:
            self._block, self._offset = next(self._blocks), 0
        count = min(at_most, self._block_steps - self._offset)
        steps = StreamedSteps(self._block, np.int32(self._offset))
        self._next, self._offset = first + count, self._offset + count
        return count, steps

    def _read_blocks(self, start: int) -> Iterator[Images]:
        """Blocks of the batches from `start` on, on the devices; all of one shape."""
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
    """The order of training: which examples make up the batch of any step.

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
        """int32 [batch_size]: the examples of this step, counted from 0."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, self._num_examples)
        parts = [self._epoch(int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([*self._seed, epoch])
        return rng.permutation(self._num_examples).astype(np.int32)


# --- Evaluation ----------------------------------------------------------------------------------


class Evaluation:
    """A split as it is evaluated: every image once, in batches of one shape.

    Args:
        view: how images are decoded.
        indices: of the split's images in `view`.
        mesh: batches are split over its devices.
        resident: keeps the images on the device from the first use.
        store: keeps decoded images that are not resident.
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
        """Images, the indices of a batch among them [B], and validity float32 [B].

        The last batch is filled up with its first image and validity 0: every example counts
        exactly once.
        """
        starts = range(0, len(self), batch_size)

        def positions(i: int) -> tuple[np.ndarray, np.ndarray]:
            wanted = np.arange(starts[i], starts[i] + batch_size)
            valid = wanted < len(self)
            return np.where(valid, wanted, starts[i]).astype(np.int32), valid.astype(np.float32)

        if self._resident is not None:
            for i in range(len(starts)):
                indices, valid = positions(i)
                yield self._resident, indices, valid
            return
        within = np.arange(batch_size, dtype=np.int32)
        loaded = read_ahead(
            lambda i: self._view.load(self._indices[positions(i)[0]], self._store), 0, len(starts)
        )
        for i, batch in enumerate(loaded):
            yield sharding.replicate(batch, self._mesh), within, positions(i)[1]
