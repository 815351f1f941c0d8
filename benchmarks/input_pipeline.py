"""Feeding images: our stream against torch.utils.data.DataLoader, same files, same run.

python -m benchmarks.input_pipeline --data=busi --dir=FOLDER [--json=FILE]

It needs torch and torchvision (pip install -e '.[parity]').

Every round lets both go through the same number of batches, in turn; the table has medians over the
rounds. Rows:

  decode            bytes -> the pixels a step starts from: ours to the canvas, theirs is part of
                    the next row
  decode + augment  to normalised random crops, flipped: ours on the device in the jitted step,
                    theirs by torchvision in the workers (RandomResizedCrop, flip, ToTensor,
                    Normalize)
  resident          the same crops from images that are on the device already

The peer has as many workers as ours has threads, persistent, reading ahead four batches each. A
measurement lasts from the first file read to the last batch received: neither side has anything
read ahead before it. On a CPU our augmentation takes the cores that decode; on a GPU it does not.
"""

import argparse
import functools
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from benchmarks import torch_loader
from egmae_jax import augment, sharding
from egmae_jax.data import datasets, pipeline
from egmae_jax.data.pipeline import Order, Resident, Stream
from egmae_jax.data.prepare import Prepared, prepare

SIZE, STORE, SCALE, RATIO = 224, 448, (0.2, 1.0), (3 / 4, 4 / 3)


def our_crops(steps: Any, i: jax.Array, key: jax.Array, mesh: jax.sharding.Mesh) -> jax.Array:
    """Normalised random crops of one batch, as a pre-training step makes them."""
    batch = steps.batch(i, mesh)
    crop_key, flip_key = jax.random.split(jax.random.fold_in(key, i))
    crop = augment.random_resized_crop(crop_key, batch.sizes, scale=SCALE, ratio=RATIO)
    flip = augment.random_flip(flip_key, len(batch))
    return augment.normalize(augment.resample(batch.pixels, crop, flip, size=SIZE))


def ours(
    make_feed: Callable[[], Stream | Resident], count: int, crops: Callable | None
) -> Callable[[], None]:
    """Goes through `count` steps of a feed that is made anew, and so reads ahead nothing before."""

    def run() -> None:
        feed, position, made = make_feed(), 0, []
        while position < count:
            n = min(count - position, feed.max_steps)
            steps = feed.steps(position, n)  # while the device works on the last ones
            jax.block_until_ready(made)
            if crops is not None:
                made = [crops(steps, i, jax.random.key(0)) for i in range(n)]
            position += n
        jax.block_until_ready(made)

    return run


def prepared_set(arguments: argparse.Namespace, cache: Path) -> Prepared:
    """The data set's records."""
    return prepare(
        arguments.data, arguments.dir, cache, on_error="skip", near_duplicate_threshold=0.99
    )


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="busi", choices=datasets.names())
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=60, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    workers, mesh = os.cpu_count() or 1, sharding.make_mesh()
    batch, count = arguments.batch, arguments.batches
    with tempfile.TemporaryDirectory() as cache:
        data = prepared_set(arguments, Path(cache))
        indices = np.arange(len(data.files))
        view = pipeline.training_view(
            data, indices, color="rgb", resize="shorter_side", store_size=STORE
        )
        order = Order(len(indices), batch, (0,))
        crops = jax.jit(functools.partial(our_crops, mesh=mesh))
        few = sharding.replicate(pipeline.load(view, indices[:512]), mesh)
        resident = Resident(few, Order(len(few), batch, (0,)))
        files = torch_loader.Files([arguments.dir / f for f in data.files], SIZE, SCALE, RATIO)

        def stream() -> Stream:
            return Stream(view, indices, order, count, mesh)

        runs = {
            "decode": ours(stream, count, None),
            "decode + augment": ours(stream, count, crops),
            "resident": ours(lambda: resident, count, crops),
            "torch DataLoader": torch_loader.batches(files, batch, count, workers),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()  # compiles, starts the workers
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                rates[name].append(count * batch / (time.perf_counter() - started))
    result = {name: statistics.median(values) for name, values in rates.items()}
    table = rich.table.Table(title=f"{data.title}: images/s, {workers} cores, {jax.devices()[0]}")
    for title in ("", "images/s", "ratio to DataLoader"):
        table.add_column(title, justify="right" if title else "left")
    for name, rate in result.items():
        table.add_row(name, f"{rate:.0f}", f"{rate / result['torch DataLoader']:.2f}")
    rich.console.Console().print(table)
    memory = {
        "ours_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "canvas_mb_per_image": view.nbytes(1) / 1e6,
    }
    print(f"peak memory of this process {memory['ours_mb']:.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps({"images_per_second": result, **memory}, indent=2))


if __name__ == "__main__":
    main()
