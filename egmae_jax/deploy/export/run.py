"""Writes the exported folders, and compares what is in them with what evaluated the run."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text
from scipy.special import softmax

from egmae_jax.core.errors import MissingExtraError, UserError
from egmae_jax.core.extras import require
from egmae_jax.core.files import require_writable
from egmae_jax.deploy.export import card, pytorch, stablehlo, weights
from egmae_jax.deploy.export.system import System, branch_logits, systems
from egmae_jax.method import augment
from egmae_jax.run.saved_run import SavedRun

FORMATS = ("timm", "stablehlo", "onnx")
_TOLERANCES = {"timm": 1e-4, "stablehlo": 1e-5, "onnx": 1e-4}
_COMPARED = 2  # images

logger = logging.getLogger("egmae_jax.deploy.export")


class ExportError(UserError):
    """It cannot be exported so, or what was exported computes something else."""


class ExportedFile(NamedTuple):
    """A file, and how far what it computes is from what the run computed."""

    path: Path
    size: int  # bytes
    difference: float | None  # the largest; None where it could not be loaded
    tolerance: float
    note: str  # what was compared, or why nothing was

    @property
    def wrong(self) -> bool:
        """Whether it differs; NaN does."""
        return self.difference is not None and not self.difference <= self.tolerance


def export_run(
    workdir: Path,
    out: Path,
    *,
    branch: str | None = None,
    round_index: int = 0,
    formats: Sequence[str] = ("timm", "stablehlo"),
) -> list[ExportedFile]:
    """Writes a folder for each model of a round, and compares every file with the run.

    Args:
        workdir: of a run that has been evaluated.
        out: folder for the folders.
        branch: to export alone; None: all, and the ensemble of several.
        round_index: of the run.
        formats: of FORMATS. 'onnx' needs the extra of that name and a network that timm or
            torchvision has, and brings timm's files along; of the ensemble there is none.

    Returns:
        The files. Those whose `wrong` is true are not what the run computed.

    Raises:
        ExportError: a format is unknown or cannot be had.
        RunError, DamagedFileError, CheckpointError: the run cannot be used so.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        named = ", ".join(map(repr, unknown)) or "nothing"
        raise ExportError(f"--formats has {named}; there are {', '.join(FORMATS)}.")
    if out.exists() and not out.is_dir():
        raise ExportError(f"--out={out} is a file; it must be a folder, or not be there yet.")
    require_writable(out, f"--out={out}")
    run = SavedRun(workdir)
    if "onnx" in formats:
        _require_onnx(run, branch)
    found = systems(run, branch, round_index)
    for folder in (out / system.name for system in found):
        if folder.exists() and any(folder.iterdir()):
            raise ExportError(
                f"{folder} holds files, which may be another model's: delete it, or take another "
                "--out."
            )
    cards = [card.card(run, system, round_index, formats) for system in found]

    _tell_not_written(found, formats)
    batch = _random_batch(found[-1])  # the last has all networks
    files = []
    for system, text in zip(found, cards, strict=True):
        folder = out / system.name
        card.write(text, folder)
        if system.fusion is None and {"timm", "onnx"} & set(formats):
            source = run.paths.finetuned(system.name, round_index)
            files.append(_write_weights(system, source, folder, batch))
            if "onnx" in formats and weights.in_pytorch(system.networks[0].branch.model_name):
                path = folder / "model.onnx"
                pytorch.write_onnx(system, folder, path)
                files.append(_check_program(path, pytorch.load_onnx(path), system, batch, "onnx"))
        if "stablehlo" in formats:
            path = folder / "model.stablehlo"
            stablehlo.write(system, path)
            files.append(_check_program(path, stablehlo.load(path), system, batch, "stablehlo"))
    return files


def _tell_not_written(found: Sequence[System], formats: Sequence[str]) -> None:
    files: dict[str, list[str]] = {}  # by the reason
    for system in found:
        for file, reason in weights.not_written(system, formats).items():
            files.setdefault(reason, []).append(f"{system.name}/{file}")
    for reason, absent in files.items():
        logger.warning("Not written: %s. %s", ", ".join(absent), reason)


class Batch(NamedTuple):
    """What is compared on."""

    images: np.ndarray  # uint8 [B, S, S, 3]
    logits: dict[str, np.ndarray]  # by branch, [B, C]


def _random_batch(system: System) -> Batch:
    shape = (_COMPARED, system.view.size, system.view.size)
    channels = 1 if system.view.color == "grey" else 3  # as the run feeds its networks
    seen = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    logits = {network.branch.name: branch_logits(network, seen) for network in system.networks}
    return Batch(np.broadcast_to(seen, (*shape, 3)).copy(), logits)


def _require_onnx(run: SavedRun, branch: str | None) -> None:
    """Raises ExportError where there can be no ONNX."""
    try:
        require("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", extra="onnx")
    except MissingExtraError as error:
        raise ExportError(f"There can be no ONNX: {error}") from None
    chosen = run.branches if branch is None else (run.branch(branch),)
    if not any(weights.in_pytorch(each.model_name) for each in chosen):
        names = ", ".join(each.model_name for each in chosen)
        raise ExportError(
            f"ONNX is made from PyTorch's networks, and no library has {names}: leave onnx out of "
            "--formats."
        )


def _write_weights(system: System, source: Path, folder: Path, batch: Batch) -> ExportedFile:
    weights.write(system, source, folder)
    path = folder / "model.safetensors"
    branch = system.networks[0].branch
    if not weights.in_pytorch(branch.model_name):
        return _file(path, None, "timm", f"no other library has {branch.model_name}.")
    try:
        require("torch", "torchvision", "timm", extra="parity")
    except MissingExtraError as error:
        return _file(path, None, "timm", str(error))
    network = pytorch.network(folder, branch.model_name, len(system.classes))
    found = pytorch.logits(network, np.asarray(augment.normalize(jnp.asarray(batch.images))))
    return _file(path, np.abs(found - batch.logits[branch.name]).max(), "timm", "logits")


def _check_program(
    path: Path, program: Callable, system: System, batch: Batch, kind: str
) -> ExportedFile:
    """Compares the outputs; what a temperature below 1 enlarges their differences by is taken off.

    The one of the probabilities themselves stays.
    """
    found, expected = (
        program(batch.images),
        system.reference({name: softmax(logits, axis=1) for name, logits in batch.logits.items()}),
    )
    apart = {name: np.abs(np.asarray(found[name]) - expected[name]).max() for name in expected}
    apart["calibrated"] *= min(1.0, system.scaling.temperature)
    return _file(path, np.max(list(apart.values())), kind, "probabilities")


def _file(path: Path, difference: float | None, kind: str, note: str) -> ExportedFile:
    size = path.stat().st_size
    worst = None if difference is None else float(difference)
    return ExportedFile(path, size, worst, _TOLERANCES[kind], note)


def show(files: Sequence[ExportedFile], out: Path) -> None:
    """Prints a table of the files, at most 80 columns wide but for the folder."""
    terminal = rich.console.Console(highlight=False, emoji=False)
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
    table.add_column("File", overflow="fold")
    for title in ("MB", "Largest difference", "Allowed"):
        table.add_column(title, justify="right", no_wrap=True)
    for file in files:
        compared = "not compared" if file.difference is None else f"{file.difference:.1e}"
        table.add_row(
            rich.text.Text(file.path.relative_to(out).as_posix()),
            f"{file.size / 1e6:.1f}",
            compared,
            f"{file.tolerance:.0e}",
            style="bold red" if file.wrong else "",
        )
    terminal.print(table)
    terminal.print("Differences are of logits where timm loads weights, else of probabilities.")
    for reason in dict.fromkeys(file.note for file in files if file.difference is None):
        terminal.print(f"Not compared: {reason}", markup=False)
    terminal.print(
        "Each folder has a model card, README.md: before you publish it, choose a license.",
        markup=False,
    )
    terminal.print(f"The folders are in {out}", markup=False, soft_wrap=True)
