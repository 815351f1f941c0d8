"""Writes the exported folders, and compares what each file computes with the run."""

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
from egmae_jax.core.files import require_writable, write_atomically
from egmae_jax.deploy.export import card, pytorch, stablehlo, weights
from egmae_jax.deploy.export.system import System, branch_logits, systems
from egmae_jax.method import augment
from egmae_jax.run.saved_run import SavedRun

FORMATS = ("timm", "stablehlo", "onnx")
_TOLERANCES = {"timm": 1e-4, "stablehlo": 1e-5, "onnx": 1e-4}
_COMPARED = 2  # images

logger = logging.getLogger("egmae_jax.deploy.export")


class ExportError(UserError):
    """The run cannot be exported so; the message says what would do."""


class ExportedFile(NamedTuple):
    """An exported file, and how far its outputs are from the run's."""

    path: Path
    difference: float | None  # largest absolute difference; None where it could not be loaded
    tolerance: float
    note: str  # what was compared, or why nothing was

    @property
    def wrong(self) -> bool:
        """Whether the outputs differ by more than the tolerance, or are NaN."""
        return self.difference is not None and not self.difference <= self.tolerance


class _Batch(NamedTuple):
    """Random images that exported files are compared on."""

    images: np.ndarray  # uint8 [B, S, S, 3]
    logits: dict[str, np.ndarray]  # [B, C] by branch


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
        workdir: folder of a run that has been evaluated.
        out: folder for the folders.
        branch: branch to export alone; None: all branches, and the ensemble of several.
        round_index: round of the run.
        formats: some of FORMATS. 'onnx' needs the extra of that name and a network that timm or
            torchvision has, and brings timm's files along; the ensemble has no ONNX.

    Returns:
        The files. Those whose `wrong` is true do not compute what the run computed.

    Raises:
        ExportError: a format is unknown or cannot be written, or a folder is not empty.
        RunError, DamagedFileError, CheckpointError: the run cannot be used so.
    """
    if not formats or set(formats) - set(FORMATS):
        raise ExportError(
            f"--formats={','.join(formats)}: expected are some of {', '.join(FORMATS)}."
        )
    require_writable(out, f"--out={out}")
    run = SavedRun(workdir)
    if "onnx" in formats:
        _require_onnx(run, branch)
    exported = systems(run, branch, round_index)
    for folder in (out / system.name for system in exported):
        if folder.exists() and any(folder.iterdir()):
            raise ExportError(
                f"{folder} holds files, which may be another model's: delete it, or take another "
                "--out."
            )
    cards = [card.card(run, system, round_index, formats) for system in exported]
    for system in exported:
        for file, reason in weights.not_written(system, formats).items():
            logger.warning("Not written: %s/%s. %s", system.name, file, reason)
    batch = _random_batch(exported[-1])  # which has all networks
    files = []
    for system, text in zip(exported, cards, strict=True):
        write_atomically(out / system.name / "README.md", text)
        source = run.paths.finetuned(system.name, round_index)
        files += _write(system, out / system.name, source, batch, formats)
    return files


def _require_onnx(run: SavedRun, branch: str | None) -> None:
    """Raises ExportError where no branch can be written as ONNX."""
    try:
        require("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", extra="onnx")
    except MissingExtraError as error:
        raise ExportError(f"ONNX cannot be written: {error}") from None
    names = [x.model_name for x in (run.branches if branch is None else (run.branch(branch),))]
    if not any(map(weights.library, names)):
        raise ExportError(
            f"ONNX is made from PyTorch's networks, and no library has {', '.join(names)}: leave "
            "onnx out of --formats."
        )


def _random_batch(system: System) -> _Batch:
    channels = 1 if system.view.color == "grey" else 3  # as the run feeds its networks
    shape = (_COMPARED, system.view.size, system.view.size)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    logits = {network.branch.name: branch_logits(network, pixels) for network in system.networks}
    return _Batch(np.broadcast_to(pixels, (*shape, 3)).copy(), logits)


def _write(
    system: System, folder: Path, source: Path, batch: _Batch, formats: Sequence[str]
) -> list[ExportedFile]:
    """Writes the files of a branch, whose weights are in `source`, or of the ensemble."""
    files = []
    if system.fusion is None and {"timm", "onnx"} & set(formats):
        weights.write(system, source, folder)
        files.append(_check_weights(system, folder, batch))
        if "onnx" in formats and weights.library(system.networks[0].branch.model_name):
            path = folder / "model.onnx"
            pytorch.write_onnx(system, folder, path)
            files.append(_check_program(path, pytorch.load_onnx(path), system, batch, "onnx"))
    if "stablehlo" in formats:
        path = folder / "model.stablehlo"
        stablehlo.write(system, path)
        files.append(_check_program(path, stablehlo.load(path), system, batch, "stablehlo"))
    return files


def _check_weights(system: System, folder: Path, batch: _Batch) -> ExportedFile:
    """Compares the logits of PyTorch's network, where its libraries are at hand."""
    path, tolerance = folder / "model.safetensors", _TOLERANCES["timm"]
    branch = system.networks[0].branch
    if not weights.library(branch.model_name):
        return ExportedFile(path, None, tolerance, f"no other library has {branch.model_name}.")
    try:
        require("torch", "torchvision", "timm", extra="parity")
    except MissingExtraError as error:
        return ExportedFile(path, None, tolerance, str(error))
    network = pytorch.network(folder, branch.model_name, len(system.classes))
    theirs = pytorch.logits(network, np.asarray(augment.normalize(jnp.asarray(batch.images))))
    difference = float(np.abs(theirs - batch.logits[branch.name]).max())
    return ExportedFile(path, difference, tolerance, "logits")


def _check_program(
    path: Path, program: Callable, system: System, batch: _Batch, kind: str
) -> ExportedFile:
    """Compares the probabilities of a program.

    Differences of calibrated probabilities are reduced by the factor by which a temperature below 1
    enlarges them.
    """
    outputs = program(batch.images)
    expected = system.reference({name: softmax(x, axis=1) for name, x in batch.logits.items()})
    apart = {name: np.abs(np.asarray(outputs[name]) - x).max() for name, x in expected.items()}
    apart["calibrated"] *= min(1.0, system.scaling.temperature)
    difference = float(np.max(list(apart.values())))
    return ExportedFile(path, difference, _TOLERANCES[kind], "probabilities")


def show(files: Sequence[ExportedFile], out: Path) -> None:
    """Prints a table of the files, at most 80 columns wide but for the folder."""
    terminal = rich.console.Console(highlight=False, emoji=False)
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
    table.add_column("File", overflow="fold")
    for title in ("MB", "Largest difference", "Allowed"):
        table.add_column(title, justify="right", no_wrap=True)
    for file in files:
        table.add_row(
            rich.text.Text(file.path.relative_to(out).as_posix()),
            f"{file.path.stat().st_size / 1e6:.1f}",
            "not compared" if file.difference is None else f"{file.difference:.1e}",
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
