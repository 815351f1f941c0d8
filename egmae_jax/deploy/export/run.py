"""Exports the models of a run, and compares the outputs of every file with the run's."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from egmae_jax import models
from egmae_jax.augmentations import tta
from egmae_jax.core import console
from egmae_jax.core.errors import MissingExtraError
from egmae_jax.core.extras import require
from egmae_jax.core.files import require_writable, write_atomically
from egmae_jax.deploy.export import card, pytorch, stablehlo, weights
from egmae_jax.deploy.export.system import System, compute_logits, make_systems
from egmae_jax.method import augment
from egmae_jax.run.saved_run import RunError, SavedRun

FORMATS = ("timm", "stablehlo", "onnx")
_TOLERANCES = {"model.safetensors": 1e-4, "model.stablehlo": 1e-5, "model.onnx": 1e-4}
_NUM_COMPARED = 2  # random images

logger = logging.getLogger("egmae_jax.deploy.export")


class ExportedFile(NamedTuple):
    """An exported file and the difference between its outputs and the run's.

    Attributes:
        path: path of the file.
        difference: largest absolute difference of logits (model.safetensors) or probabilities (the
            programs); None if the file was not compared.
        reason: why the file was not compared; '' if it was.
    """

    path: Path
    difference: float | None
    reason: str = ""

    @property
    def tolerance(self) -> float:
        """Largest difference that counts as equal."""
        return _TOLERANCES[self.path.name]

    @property
    def is_wrong(self) -> bool:
        """Whether the outputs differ by more than the tolerance or are NaN."""
        return self.difference is not None and not self.difference <= self.tolerance


class _Batch(NamedTuple):
    """Random images, and what the run makes of them, to compare exported files with."""

    images: np.ndarray  # uint8 [B, S, S, 3], with the side of the view
    logits: dict[str, np.ndarray]  # logits of the central crops by branch, float32 [B, C]
    probabilities: dict[str, np.ndarray]  # mean over the views, float32 [B, C] by branch


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
        out: folder in which each model gets its own folder.
        branch: branch to export; None exports all branches and, if there are several, the ensemble.
        round_index: round of the run.
        formats: some of FORMATS. 'onnx' also writes the files of 'timm'; it needs the extra 'onnx',
            and a single network that timm or torchvision has, so the ensemble has no ONNX file.

    Returns:
        The files with their differences. Those with `is_wrong` must not be used.

    Raises:
        RunError: a format is unknown, a folder is not empty, the run has not been evaluated, or it
            has no such branch or round.
        DamagedFileError, CheckpointError: a file of the run cannot be read.
        MissingExtraError: a library that ONNX needs is not installed.
    """
    if not formats or set(formats) - set(FORMATS):
        raise RunError(
            f"--formats is {','.join(formats)!r}; it must be one or several of "
            f"{', '.join(FORMATS)}, separated by commas."
        )
    require_writable(out, f"--out={out}")
    run = SavedRun(workdir)
    if "onnx" in formats:
        require("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", extra="onnx")
    systems = make_systems(run, branch, round_index)
    _require_empty(out / system.name for system in systems)
    names = {system.name: _list_files(system, formats) for system in systems}
    cards = [card.render_card(run, system, round_index, names[system.name]) for system in systems]
    batch = _make_batch(systems[-1])  # the last system has all networks
    files = []
    for system, text in zip(systems, cards, strict=True):
        folder, source = out / system.name, run.paths.finetuned(system.name, round_index)
        write_atomically(folder / "README.md", text)
        files += [_write(system, folder / name, source, batch) for name in names[system.name]]
    return files


def _require_empty(folders: Iterable[Path]) -> None:
    """Raises RunError if a folder contains anything."""
    for folder in folders:
        if folder.exists() and any(folder.iterdir()):
            raise RunError(
                f"The folder {folder} is not empty and may contain another model. Delete it, or "
                "choose another --out."
            )


def _list_files(system: System, formats: Sequence[str]) -> list[str]:
    """Returns the names of a model's files besides its card; warns if ONNX is impossible."""
    names = ["model.stablehlo"] if "stablehlo" in formats else []
    if system.fusion is None and {"timm", "onnx"} & set(formats):
        names.append("model.safetensors")
    if "onnx" in formats:
        if system.fusion is None and models.library(system.networks[0].branch.model_name):
            names.append("model.onnx")
        else:
            logger.warning(
                "%s/model.onnx is not written: ONNX needs a single network that timm or "
                "torchvision has",
                system.name,
            )
    return names


def _make_batch(system: System) -> _Batch:
    channels = 1 if system.view.color == "grey" else 3  # as in the run
    shape = (_NUM_COMPARED, system.view.size, system.view.size)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    logits, probabilities = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for network in system.networks:
        views = tta.views(pixels, system.tta, system.size, flip=np.flip)
        each = [compute_logits(network, view) for view in views]
        logits[network.branch.name] = each[0]
        probabilities[network.branch.name] = np.mean([softmax(x, axis=1) for x in each], axis=0)
    return _Batch(np.broadcast_to(pixels, (*shape, 3)).copy(), logits, probabilities)


def _write(system: System, path: Path, source: Path, batch: _Batch) -> ExportedFile:
    """Writes a file of a model and compares its outputs with the run's.

    Args:
        system: a branch or the ensemble.
        path: file to write. An ONNX program is made from model.safetensors in the same folder.
        source: weight file of the branch in the workdir.
        batch: images and the run's logits, for the comparison.
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
    """Compares the logits of exported weights in PyTorch, if PyTorch and its models are there."""
    branch = system.networks[0].branch
    if not models.library(branch.model_name):
        return ExportedFile(path, None, f"neither timm nor torchvision has {branch.model_name}.")
    try:
        require("torch", "torchvision", "timm", extra="parity")
    except MissingExtraError as error:
        return ExportedFile(path, None, str(error))
    network = pytorch.load_network(path.parent, branch.model_name, len(system.classes))
    normalization = models.normalization(branch.model_name)
    centre = tta.centre_crop(batch.images, system.size)
    normalized = np.asarray(augment.normalize(jnp.asarray(centre), *normalization))
    logits = pytorch.compute_logits(network, normalized)
    return ExportedFile(path, float(np.abs(logits - batch.logits[branch.name]).max()))


def _compare_program(system: System, path: Path, program: Callable, batch: _Batch) -> ExportedFile:
    """Compares the probabilities of a program with the run's.

    A temperature below 1 enlarges the differences of calibrated probabilities by its inverse, so
    these are multiplied by it.
    """
    outputs = program(batch.images)
    expected = system.reference(batch.probabilities)
    difference = {k: np.abs(np.asarray(outputs[k]) - x).max() for k, x in expected.items()}
    difference["calibrated"] *= min(1.0, system.scaling.temperature)
    return ExportedFile(path, float(np.max(list(difference.values()))))


def show(files: Sequence[ExportedFile], out: Path) -> None:
    """Prints a table of the exported files and their differences.

    Args:
        files: result of `export_run`.
        out: folder that contains the files.
    """
    table = console.table(["File"], ["MB", "Largest difference", "Allowed"])
    for file in files:
        table.add_row(
            file.path.relative_to(out).as_posix(),
            f"{file.path.stat().st_size / 1e6:.1f}",
            "not compared" if file.difference is None else f"{file.difference:.1e}",
            f"{file.tolerance:.0e}",
            style="bold red" if file.is_wrong else "",
        )
    console.terminal.print(table)
    lines = ["Differences are those of logits for model.safetensors, else of probabilities."]
    lines += dict.fromkeys(f"Not compared: {file.reason}" for file in files if file.reason)
    lines += ["Each folder has a model card, README.md. Choose a license before you publish it."]
    for line in [*lines, f"The folders are in {out}"]:
        console.terminal.print(line, soft_wrap=True)
