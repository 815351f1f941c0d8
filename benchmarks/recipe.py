"""Wall time of the whole recipe: two branches, one seed, as many images as BUSI has.

python -m benchmarks.recipe [--images=780] [--preset=1000/15] [--model=convnext_tiny] \
    [--image_size=224] [--dtype=bfloat16] [--limit_s=200] [--json=FILE]

The command is main.py's on generated images; preparing them does not count, compiling does. A run
that `--limit_s` stops is carried on to its end by its own images/s, and says so.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from egmae_jax.data import phantoms


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Returns the seconds, and whether they were measured or extrapolated."""
    images, workdir = folder / "images", folder / "workdir"
    phantoms.write(images, images_per_class=arguments.images // 3, seed=0, height=450, width=560)
    command = [sys.executable, "main.py", f"--config=configs/image_folder.py:{arguments.preset}"]
    command += [f"--workdir={workdir}"]
    fields = {
        "data.dir": images,
        "data.cache_dir": folder / "cache",
        "data.image_size": arguments.image_size,
        "model.name": arguments.model,
        "model.dtype": arguments.dtype,
        "imagenet.weights": "none",
        "rounds.count": 1,
    }
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    started = time.monotonic()
    process = subprocess.Popen(command)
    try:
        if process.wait(arguments.limit_s):
            raise SystemExit("main.py failed")
        seconds, note = time.monotonic() - started, "all of it, with preparing and compiling"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        seconds, note = _carried_on(workdir, arguments.preset)
    return {"seconds": seconds, "note": note, "images": arguments.images}


def _carried_on(workdir: Path, preset: str) -> tuple[float, str]:
    """Returns the seconds of all epochs at the pace of the completed ones."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    pretraining = [row for row in rows if row["stage"] == "pretrain"]
    epochs, last = sum(map(int, preset.split("/"))) + int(preset.split("/")[1]), pretraining[-1]
    rates = sorted(row["images_per_second"] for row in pretraining)
    images = 16 * last["step"] / last["epoch"]  # an epoch's, at the recipe's batch
    seconds = epochs * images / rates[len(rates) // 2]
    return seconds, (
        f"estimated from {last['epoch']} epochs of pre-training at {rates[len(rates) // 2]:.0f} "
        "images/s, fine-tuning taken to be as fast"
    )


def main(argv: list[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=780)
    parser.add_argument("--preset", default="1000/15")
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--limit_s", type=float, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    print(f"{result['seconds']:.0f} s for {arguments.preset}: {result['note']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
