"""Writes the exported folders, and compares what each file computes with the run."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import rich.box
import rich.table
import rich.text
from scipy.special import softmax

from egmae_jax.core import console
from egmae_jax.core.errors import MissingExtraError
from egmae_jax.core.extras import require
from egmae_jax.core.files import require_writable, write_atomically
from egmae_jax.deploy.export import card, pytorch, stablehlo, weights
from egmae_jax.deploy.export.system import System, branch_logits, systems
from egmae_jax.method import augment
from egmae_jax.run.saved_run import RunError, SavedRun

FORMATS = ("timm", "stablehlo", "onnx")
_TOLERANCES = {"model.safetensors": 1e-4, "model.stablehlo": 1e-5, "model.onnx": 1e-4}
_COMPARED = 2  # images

logger = logging.getLogger("egmae_jax.deploy.export")


class ExportedFile(NamedTuple):
    """An exported file, and how far its outputs are from the run's.

    Attributes:
        path: the file.
        difference: largest absolute difference, of logits where PyTorch loads weights, else of
            probabilities; None where the file could not be loaded.
        reason: why the file could not be loaded.
    """

    path: Path
    difference: float | None
    reason: str = ""

    @property
    def tolerance(self) -> float:
        """Largest difference that counts as equal."""
        return _TOLERANCES[self.path.name]

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
        out: folder that gets a folder for each model.
        branch: branch to export; None: all branches, and the ensemble of several.
        round_index: round of the run.
        formats: some of FORMATS. 'onnx' needs the extra of that name and a network that timm or
            torchvision has, and brings timm's files along; the ensemble has no ONNX.

    Returns:
        The files. Those whose `wrong` is true do not compute what the run computed.

    Raises:
        RunError: a format is unknown, a folder is not empty, or the run cannot be used so.
        DamagedFileError, CheckpointError: a file of the run cannot be read.
        MissingExtraError: a library that ONNX needs is missing.
    """
    if not formats or set(formats) - set(FORMATS):
        raise RunError(f"--formats={','.join(formats)}: expected are some of {', '.join(FORMATS)}.")
    require_writable(out, f"--out={out}")
    run = SavedRun(workdir)
    if "onnx" in formats:
        require("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", extra="onnx")
    exported = systems(run, branch, round_index)
    for folder in (out / system.name for system in exported):
        if folder.exists() and any(folder.iterdir()):
            raise RunError(
                f"{folder} holds files, which may be another model's: delete it, or take another "
                "--out."
            )
    names = {system.name: _file_names(system, formats) for system in exported}
    cards = [card.card(run, system, round_index, names[system.name]) for system in exported]
    batch = _random_batch(exported[-1])  # the last has all networks
    files = []
    for system, text in zip(exported, cards, strict=True):
        folder, source = out / system.name, run.paths.finetuned(system.name, round_index)
        write_atomically(folder / "README.md", text)
        files += [_write(system, folder / name, source, batch) for name in names[system.name]]
    return files


def _file_names(system: System, formats: Sequence[str]) -> list[str]:
    """Files of a model beside its card; warns where there can be no ONNX."""
    names = ["model.stablehlo"] if "stablehlo" in formats else []
    if system.fusion is None and {"timm", "onnx"} & set(formats):
        names.append("model.safetensors")
    if "onnx" in formats:
        if system.fusion is None and weights.library(system.networks[0].branch.model_name):
            names.append("model.onnx")
        else:
            logger.warning(
                "Not written: %s/model.onnx. ONNX is made of a single network that timm or "
                "torchvision has",
                system.name,
            )
    return names


def _random_batch(system: System) -> _Batch:
    channels = 1 if system.view.color == "grey" else 3  # as the run feeds its networks
    shape = (_COMPARED, system.view.size, system.view.size)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    logits = {network.branch.name: branch_logits(network, pixels) for network in system.networks}
    return _Batch(np.broadcast_to(pixels, (*shape, 3)).copy(), logits)


def _write(system: System, path: Path, source: Path, batch: _Batch) -> ExportedFile:
    """Writes a file of a model and compares its outputs with the run's.

    Args:
        system: a branch or the ensemble.
        path: file to write; an ONNX program is made from the weights beside it.
        source: file of the branch's weights in the workdir.
        batch: images that both compute.
    """
    if path.name == "model.safetensors":
        weights.write(system, source, path.parent)
        return _compare_weights(system, path, batch)
    if path.name == "model.onnx":
        pytorch.write_onnx(system, path)
        return _compare_program(system, path, pytorch.load_onnx(path), batch)
    stablehlo.write(system, path)
    return _compare_program(system, path, stablehlo.load(path), batch)


def _compare_weights(system: System, path: Path, batch: _Batch) -> ExportedFile:
    """Compares the logits of PyTorch's network, where its libraries are at hand."""
    branch = system.networks[0].branch
    if not weights.library(branch.model_name):
        return ExportedFile(path, None, f"no other library has {branch.model_name}.")
    try:
        require("torch", "torchvision", "timm", extra="parity")
    except MissingExtraError as error:
        return ExportedFile(path, None, str(error))
    network = pytorch.network(path.parent, branch.model_name, len(system.classes))
    theirs = pytorch.logits(network, np.asarray(augment.normalize(jnp.asarray(batch.images))))
    return ExportedFile(path, float(np.abs(theirs - batch.logits[branch.name]).max()))


def _compare_program(system: System, path: Path, program: Callable, batch: _Batch) -> ExportedFile:
    """Compares the probabilities of a program.

    Differences of calibrated probabilities are reduced by the factor by which a temperature below 1
    enlarges them.
    """
    outputs = program(batch.images)
    expected = system.reference({name: softmax(x, axis=1) for name, x in batch.logits.items()})
    apart = {name: np.abs(np.asarray(outputs[name]) - x).max() for name, x in expected.items()}
    apart["calibrated"] *= min(1.0, system.scaling.temperature)
    return ExportedFile(path, float(np.max(list(apart.values()))))


def show(files: Sequence[ExportedFile], out: Path) -> None:
    """Prints a table of the files, at most 80 columns wide but for the folder."""
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
    console.terminal.print(table)
    lines = ["Differences are of logits where PyTorch loads weights, else of probabilities."]
    lines += dict.fromkeys(f"Not compared: {file.reason}" for file in files if file.reason)
    lines += ["Each folder has a model card, README.md: before you publish it, choose a license."]
    for line in [*lines, f"The folders are in {out}"]:
        console.terminal.print(line, highlight=False, markup=False, soft_wrap=True)
