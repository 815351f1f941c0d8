"""Speed against PyTorch: docs/evidence/speed.json and pipeline.json, and the tables from them."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.evidence.record import FOLDER
from egmae_jax.core import provenance
from egmae_jax.core.files import read_json, write_json

STEPS, PIPELINE = FOLDER / "speed.json", FOLDER / "pipeline.json"
_STEPS = "benchmarks.train_step --model=convnext_tiny --batch=16 --image_size=224"
_WORKS = {"train": "fine-tuning", "pretrain": "pre-training", "inference": "inference"}
# Arguments of benchmarks.input_pipeline; a folder is below that of the data sets.
_SETS = {
    "BUSI, PNG 256x256, grey": "--data=busi --dir=busi --color=grey",
    "chest X-rays, JPEG 299 and wider, grey": "--data=image_folder --dir=covid_xray --color=grey",
    "ISIC 2018, JPEG 200x150": "--data=isic2018 --dir=isic2018",
    "the same enlarged to 600x450": "--data=isic2018 --dir=isic2018 --size=600x450",
}
_FEEDS = {"decode": "decode", "stream": "stream", "kept": "stream, kept", "resident": "resident"}
_LOADERS = ("DataLoader, PIL", "DataLoader, tensors")


def write_steps() -> None:
    """Measures training steps and inference, and writes speed.json."""
    write_json(STEPS, _record({"ConvNeXt-Tiny": _STEPS}))


def write_pipeline(data: Path) -> None:
    """Measures the input pipeline on data sets below a folder, and writes pipeline.json."""
    commands = {
        name: f"benchmarks.input_pipeline {words} --memory".replace("--dir=", f"--dir={data}/")
        for name, words in _SETS.items()
    }
    write_json(PIPELINE, _record(commands))


def _record(commands: dict[str, str]) -> dict[str, Any]:
    process = provenance.describe_process()
    return {
        "made_with": {key: process[key] for key in ("commit", "versions")},
        "rows": {name: _measure(command) for name, command in commands.items()},
    }


def _measure(command: str) -> dict[str, Any]:
    """Runs a benchmark in a process of its own; returns what its --json holds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        subprocess.run([sys.executable, "-m", *command.split(), f"--json={file}"], check=True)
        return read_json(file)


def step_rows(recorded: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the table of steps: milliseconds of both sides, and their ratio."""
    (figures,) = recorded["rows"].values()
    table = [["", "egmae_jax, ms", "PyTorch, ms", "ratio"]]
    for work, title in _WORKS.items():
        ours, ratio = 1e3 * figures[f"{work}_ours_s"], figures[f"{work}_ratio"]
        table.append([title, f"{ours:.0f}", f"{ratio * ours:.0f}", f"{ratio:.2f}"])
    return table


def pipeline_rows(recorded: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the table of the input pipeline: ratios to the faster DataLoader."""
    table = [["files", *_FEEDS, "memory"]]
    for name, figures in recorded["rows"].items():
        rates, peaks = figures["images_per_second"], figures["peak_mb"]
        peer = max(_LOADERS, key=rates.__getitem__)
        ratios = [f"{rates[feed] / rates[peer]:.1f}" for feed in _FEEDS.values()]
        memory = f"{peaks['stream, kept']:.0f} / {peaks['DataLoader, tensors']:.0f}"
        table.append([name, *ratios, memory])
    return table
