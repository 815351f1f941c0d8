"""Preparation of a data set compared with decoding alone, on the same files in the same run.

python -m benchmarks.preparation --data=isic2018 --dir=FOLDER [--size=600x450] [--memory] \
    [--json=FILE]

Rows, medians over the rounds, each with as many threads as there are cores:

  bare decoding      every file read and decoded by Pillow, nothing else
  preparation        `prepare`: read, decoded, checked, described, written as records, duplicates
                     found
  second start       `prepare` again: nothing has changed
  duplicates         the part of both that compares all pairs

--size writes the images anew in that size first (see benchmarks/resize.py). --memory prepares a
quarter of the images and all of them, each in a process of its own, and reports the peaks.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import rich.console
import rich.table

from benchmarks import memory
from benchmarks.resize import write_resized
from egmae_jax.data import datasets, duplicates
from egmae_jax.data.listing import list_files
from egmae_jax.data.prepare import Prepared, prepare
from egmae_jax.data.threads import read_ahead

OPTIONS: dict[str, Any] = {"on_error": "skip", "near_duplicate_threshold": 0.99}


def decode_all(paths: list[Path]) -> None:
    """Reads and decodes every file."""

    def decode(k: int) -> int:
        for path in paths[k : k + 16]:
            with PIL.Image.open(path) as image:
                image.convert("RGB")
        return k

    for _ in read_ahead(lambda k: decode(16 * k), 0, -(-len(paths) // 16)):
        pass


def seconds(function: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(name: str, data: Prepared, folder: Path, rounds: int) -> dict[str, float]:
    """Returns the seconds of each row."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:

            def go(cache: Path = Path(cache)) -> Prepared:
                return prepare(list_files(name, folder), cache, **OPTIONS)

            rows = {
                "bare decoding": lambda: decode_all([folder / file for file in data.files]),
                "preparation": go,
                "second start": go,
                "duplicates": lambda: duplicates.duplicate_pairs(
                    data.descriptors, data.pixel_hashes.tolist()
                ),
            }
            for row, function in rows.items():
                times.setdefault(row, []).append(seconds(function))
    return {row: statistics.median(values) for row, values in times.items()}


def peaks(data: Prepared, folder: Path, work: Path) -> dict[str, float]:
    """Returns the peak memory in MB of preparing a quarter of the images, and all."""
    found = {}
    for share in (4, 1):
        part = work / f"part_{share}"
        for file, label in list(zip(data.files, data.labels, strict=True))[::share]:
            link = part / data.classes[label] / Path(file).name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((folder / file).resolve())
        code = (
            "import sys; from pathlib import Path; from benchmarks import preparation as p;"
            "listing = p.list_files('image_folder', Path(sys.argv[1]));"
            "p.prepare(listing, Path(sys.argv[2]), **p.OPTIONS)"
        )
        command = [sys.executable, "-c", code, str(part), str(work / "memory_cache")]
        found[f"{len(data.files[::share])} images"] = memory.peak_memory(command)
    return found


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="isic2018", choices=datasets.names())
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--size", help="WIDTHxHEIGHT to write the images in first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = prepare(list_files(arguments.data, arguments.dir), work / "cache", **OPTIONS)
        title, source, folder = data.title, arguments.data, arguments.dir
        if arguments.size:
            source, folder = "image_folder", work / "resized"
            write_resized(data, folder, len(data.files), arguments.size)
            data = prepare(list_files(source, folder), work / "cache", **OPTIONS)
        times = measure(source, data, folder, arguments.rounds)
        result: dict[str, Any] = {"seconds": times, "images": len(data.files)}
        if arguments.memory:
            result["peak_mb"] = peaks(data, folder, work)

    height, width = data.sizes[0]
    table = rich.table.Table(
        title=f"{title}: {len(data.files)} images, {width}x{height}, {os.cpu_count()} cores"
    )
    for heading in ("", "seconds", "ratio to bare decoding"):
        table.add_column(heading, justify="right" if heading else "left")
    for row, value in times.items():
        table.add_row(row, f"{value:.2f}", f"{value / times['bare decoding']:.2f}")
    rich.console.Console().print(table)
    for what, peak in result.get("peak_mb", {}).items():
        print(f"peak memory of preparing {what}: {peak:.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
