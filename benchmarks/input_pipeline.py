"""Input pipeline compared with torch.utils.data.DataLoader, on the same files in the same run.

python -m benchmarks.input_pipeline --data=busi --dir=FOLDER [--color=grey] [--size=600x450] \
    [--train_step] [--memory] [--json=FILE]

It needs torch and torchvision (pip install -e '.[parity]').

Every round lets each row go through the same number of batches, in turn; the table has medians over
the rounds, and ratios to the faster DataLoader. Every row but the first ends in normalised random
crops, flipped:

  decode                 encoded bytes -> the uint8 batches that a step starts from
  stream                 the same, then crops in the jitted step: a first epoch
  stream, kept           from decoded images in host memory: every later epoch
  resident               from images that are on the device
  DataLoader, PIL        decoded, cropped and normalised by torchvision in the workers
  DataLoader, tensors    the same by torchvision's transforms.v2 on uint8 tensors

DataLoaders have as many workers as ours has threads, persistent, reading ahead four batches each. A
measurement lasts from the first file read to the last batch received: neither side has anything
read ahead before it. On a CPU our crops take the cores that decode; on a GPU they do not.

--size writes the images anew in that size first (JPEG stays JPEG, of quality 95; else PNG), where
those at hand are smaller than the published ones. --train_step also measures what share of a
ConvNeXt-Tiny training step the resident images' gathering and cropping is. --memory also runs each
side by itself and reports its peak.
"""

import argparse
import collections
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from benchmarks import memory, torch_loader
from benchmarks.resize import write_resized
from egmae_jax import models
from egmae_jax.core import platform, sharding
from egmae_jax.data import datasets, images, pipeline
from egmae_jax.data.images import Color
from egmae_jax.data.listing import list_files
from egmae_jax.data.pipeline import HostStore, Order, Resident, Stream, View
from egmae_jax.data.prepare import Prepared, prepare
from egmae_jax.method import augment
from egmae_jax.models.init import initial_variables
from egmae_jax.run import default_config
from egmae_jax.training import finetune, optim
from egmae_jax.training.state import TrainState

SIZE, STORE, SCALE, RATIO = 224, 448, (0.2, 1.0), (3 / 4, 4 / 3)
_IN_FLIGHT = 4  # batches of crops
_CROPS = 10  # measurements of the crops for one of a step


def our_crops(steps: Any, i: jax.Array, key: jax.Array, mesh: jax.sharding.Mesh) -> jax.Array:
    """Returns normalised random crops of one batch, as in a pre-training step."""
    batch = steps.batch(i, mesh)
    crop_key, flip_key = jax.random.split(jax.random.fold_in(key, i))
    crop = augment.random_resized_crop(crop_key, batch.sizes, scale=SCALE, ratio=RATIO)
    flip = augment.random_flip(flip_key, len(batch))
    return augment.normalize(augment.resample(batch.pixels, crop, flip, size=SIZE))


def ours(
    make_feed: Callable[[], Stream | Resident], count: int, crops: Callable | None
) -> Callable[[], None]:
    """Returns a run through `count` steps of a new feed, which has read nothing ahead."""

    def run() -> None:
        feed, position = make_feed(), 0
        made = collections.deque()  # of batches of crops
        while position < count:
            # While the device works on the last ones.
            n, steps = feed.steps(position, count - position)
            for i in range(n if crops is not None else 0):
                made.append(crops(steps, i, jax.random.key(0)))
                if len(made) > _IN_FLIGHT:
                    made.popleft().block_until_ready()
            position += n
        jax.block_until_ready(list(made))

    return run


def make_view(data: Prepared, color: Color) -> View:
    """Returns a view for random crops of all images."""
    indices = np.arange(len(data.files))
    return pipeline.training_view(
        data, indices, color=color, resize="shorter_side", store_size=STORE
    )


def resident(view: View, batch: int, mesh: jax.sharding.Mesh) -> Resident:
    """Returns a feed of the first 512 images from the device."""
    indices = np.arange(len(view.prepared.files))[:512]
    few = sharding.replicate(pipeline.load(view, indices), mesh)
    return Resident(few, Order(len(few), batch, (0,)))


def prepare_images(arguments: argparse.Namespace, work: Path) -> tuple[Prepared, Path]:
    """Returns the images that are measured, and their folder."""
    options: dict[str, Any] = {"on_error": "skip", "near_duplicate_threshold": 0.99}
    data = prepare(list_files(arguments.data, arguments.dir), work / "cache", **options)
    if not arguments.size:
        return data, arguments.dir
    folder = work / "resized"
    write_resized(data, folder, arguments.batch * arguments.batches, arguments.size)
    return prepare(list_files("image_folder", folder), work / "cache", **options), folder


def make_rows(arguments: argparse.Namespace, data: Prepared, folder: Path) -> dict[str, Callable]:
    """Returns what is measured, by name; each call runs through all batches."""
    workers, mesh = os.cpu_count() or 1, sharding.make_mesh()
    batch, count, color = arguments.batch, arguments.batches, arguments.color
    indices, view = np.arange(len(data.files)), make_view(data, color)
    crops = platform.jit(functools.partial(our_crops, mesh=mesh))
    store = HostStore(64e9)

    def stream(store: HostStore | None = None) -> Stream:
        return Stream(view, indices, Order(len(indices), batch, (0,)), count, mesh, store)

    rows = {
        "decode": ours(stream, count, None),
        "stream": ours(stream, count, crops),
        "stream, kept": ours(lambda: stream(store), count, crops),
        "resident": ours(functools.cache(lambda: resident(view, batch, mesh)), count, crops),
    }
    paths = [folder / file for file in data.files]
    for form in torch_loader.FORMS:
        files = torch_loader.Files(paths, SIZE, SCALE, RATIO, grey=color == "grey", form=form)
        rows[f"DataLoader, {form}"] = torch_loader.batches(files, batch, count, workers)
    return rows


def step_share(data: Prepared, batch: int, color: Color, rounds: int) -> dict[str, float]:
    """Returns the milliseconds of a ConvNeXt-Tiny step on resident images, and of its crops."""
    config = default_config.get_config()
    mesh = sharding.make_mesh()
    feed = resident(make_view(data, color), batch, mesh)
    model = models.create(config.model.name, len(data.classes))
    variables = initial_variables(model, 0, jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    optimizer = optim.adamw(lambda step: 1e-4, variables["params"], weight_decay=0.05)
    state = TrainState.create(variables, optimizer, mesh)

    def step(state, steps, key):
        batch = steps.batch(0, mesh)
        return finetune.finetune_step(
            state, batch, key, model=model, optimizer=optimizer, config=config
        )[0]

    whole, crops = (
        platform.jit(step),
        platform.jit(lambda state, steps, key: our_crops(steps, 0, key, mesh)),
    )
    times: dict[str, list[float]] = {"step_ms": [], "crops_ms": []}
    for number in range(rounds + 1):  # the first compiles
        for name, program in (("step_ms", whole), *[("crops_ms", crops)] * _CROPS):
            started = time.perf_counter()
            jax.block_until_ready(program(state, feed.steps(number, 1)[1], jax.random.key(number)))
            times[name].append(1e3 * (time.perf_counter() - started))
    return {
        "step_ms": statistics.median(times["step_ms"][1:]),
        "crops_ms": statistics.median(times["crops_ms"][_CROPS:]),
    }


def peaks() -> dict[str, float]:
    """Returns the peak memory of each side alone in MB, from the scan to the last batch."""
    command = [sys.executable, "-m", "benchmarks.input_pipeline", *sys.argv[1:], "--rounds=1"]
    command = [part for part in command if part not in ("--memory", "--train_step")]
    sides = ("stream", "stream, kept", "DataLoader, tensors")
    return {side: memory.peak_memory([*command, f"--only={side}"]) for side in sides}


def measure(rows: dict[str, Callable], images_a_round: int, rounds: int) -> dict[str, float]:
    """Returns the images per second of each row, as medians over the rounds."""
    for run in rows.values():
        run()  # compiles, starts the workers, fills the store
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, run in rows.items():
            started = time.perf_counter()
            run()
            rates[name].append(images_a_round / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="busi", choices=datasets.names())
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--color", choices=images.COLORS, default="rgb")
    parser.add_argument("--size", help="WIDTHxHEIGHT to write the images in first")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=60, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train_step", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--only", help="a single row")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        data, folder = prepare_images(arguments, Path(work))
        rows = make_rows(arguments, data, folder)
        if arguments.only:
            rows = {arguments.only: rows[arguments.only]}
        rates = measure(rows, arguments.batches * arguments.batch, arguments.rounds)
        result: dict[str, Any] = {"images_per_second": rates}
        if arguments.train_step:
            result["train_step"] = step_share(
                data, arguments.batch, arguments.color, arguments.rounds
            )
    if arguments.memory:
        result["peak_mb"] = peaks()

    device = f"{os.cpu_count()} cores, {jax.devices()[0].device_kind}"
    size = arguments.size or "x".join(map(str, np.median(data.sizes, axis=0).astype(int)[::-1]))
    table = rich.table.Table(title=f"{data.title}, {size}, {arguments.color}: {device}")
    for title in ("", "images/s", "ratio", "peak MB"):
        table.add_column(title, justify="right" if title else "left")
    peer = max((rate for name, rate in rates.items() if "DataLoader" in name), default=None)
    for name, rate in rates.items():
        peak = result.get("peak_mb", {}).get(name)
        ratio = f"{rate / peer:.2f}" if peer else ""
        table.add_row(name, f"{rate:.0f}", ratio, f"{peak:.0f}" if peak else "")
    rich.console.Console().print(table)
    if arguments.train_step:
        step, crops = (result["train_step"][name] for name in ("step_ms", "crops_ms"))
        print(f"of a ConvNeXt-Tiny step of {step:.0f} ms the crops are {crops / step:.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
