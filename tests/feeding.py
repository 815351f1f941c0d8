"""Images in memory, and what every host of a run gets of them.

`python -m tests.feeding OUT PROCESS COUNT PORT` is one of COUNT hosts: it writes the rows of each
batch that its devices have, and which images it has decoded.
"""

import socket
import sys
import types
from pathlib import Path

import jax
import numpy as np
import PIL.Image

from egmae_jax.core import sharding
from egmae_jax.data import images, pipeline
from egmae_jax.data.pipeline import Order
from egmae_jax.data.pixels import PixelStatistics
from egmae_jax.data.prepare import Prepared
from egmae_jax.data.samples import BY_TYPE

WINDOWS = ((0, 3), (3, 1), (7, 2))  # first step, count


def picture(seed, width, height):
    pixels = np.random.default_rng(seed).integers(1, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(pixels)  # no pixel is 0, as the canvas is


def prepared(pictures):
    """What `prepare` returns, of images in memory; their labels count up."""
    count = len(pictures)

    def pixels(index, color):
        return images.to_array(pictures[index].convert("L" if color == "grey" else "RGB"))

    return Prepared(
        name="memory",
        title="",
        citation="",
        classes=tuple(str(i) for i in range(count)),
        files=tuple(f"{i}.png" for i in range(count)),
        labels=np.arange(count) + 100,
        groups=np.arange(count),
        pairs=np.zeros((0, 2), int),
        official=np.array([""] * count),
        sizes=np.array([(image.height, image.width) for image in pictures]),
        modes=np.array(["RGB"] * count),
        descriptors=np.zeros((count, 32, 32), np.uint8),
        pixel_hashes=np.array([str(i) for i in range(count)]),
        sha256=("",) * count,
        pixels=PixelStatistics(
            types=np.array([""] * count),
            bits=np.full(count, 8),
            stored=np.tile([1.0, 255.0], (count, 1)),
            levels=np.full(count, 255),
            greys=np.tile([1, 255], (count, 1)),
        ),
        intensity=BY_TYPE,
        skipped=(),
        records=types.SimpleNamespace(pixels=pixels),
    )


def free_port() -> int:
    """Of this machine, free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def training_view(pictures, indices, store_size):
    return pipeline.training_view(
        prepared(pictures), indices, color="rgb", resize="shorter_side", store_size=store_size
    )


def nine_images():
    """A view of twelve images, the nine that are trained on, and their order."""
    indices = np.array([1, 2, 3, 4, 5, 7, 8, 9, 11])
    view = training_view([picture(i, 20 + i, 24 - i) for i in range(12)], indices, store_size=64)
    return view, indices, Order(len(indices), 8, (3,))


def main(out: str, process: str, count: str, port: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(process))
    view, indices, order = nine_images()
    decoded = []
    pixels = view.prepared.records.pixels
    view.prepared.records.pixels = lambda i, color: decoded.append(i) or pixels(i, color)
    mesh = sharding.make_mesh()
    stream = pipeline.Stream(view, indices, order, 9, mesh)
    program = jax.jit(lambda steps, i: steps.batch(i, mesh))
    rows: dict[str, np.ndarray] = {}
    for first, number in WINDOWS:
        count, steps = stream.steps(first, number)
        assert count == number
        for i in range(number):
            for name, array in program(steps, i)._asdict().items():
                for shard in array.addressable_shards:
                    row = shard.index[0].start or 0
                    rows[f"{first + i} {name} {row}"] = np.asarray(shard.data)
    np.savez(Path(out) / f"{process}.npz", decoded=decoded, **rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
