"""Writes the features of new images, by a network of a run, as a table or as arrays."""

import csv
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax.core import console, platform, sharding
from egmae_jax.core.files import (
    explain_storage_errors,
    open_atomically,
    require_output,
    write_npz,
)
from egmae_jax.data.datasets.folders import find_given
from egmae_jax.data.pipeline import pad_batch
from egmae_jax.data.threads import read_ahead
from egmae_jax.deploy.predictions import list_unreadable, spreadsheet_name
from egmae_jax.deploy.views import Views
from egmae_jax.method import augment
from egmae_jax.models import transfer
from egmae_jax.models.model import Model
from egmae_jax.run.features import pooled
from egmae_jax.run.images import view_settings
from egmae_jax.run.saved_run import RunError, SavedRun
from egmae_jax.training import pretrain

PyTree = Any
logger = logging.getLogger(__name__)


def write_features(
    workdir: Path,
    images: Sequence[Path],
    out: Path,
    *,
    branch: str | None,
    round_index: int,
    pretrained: bool,
    batch: int,
) -> dict[Path, str]:
    """Computes the features of images and writes them with the names of the files.

    Args:
        workdir: folder of the run.
        images: image files, and folders that are searched recursively.
        out: file to write; see `egmae features` for the formats.
        branch: fine-tuned branch whose network is used; None chooses as `SavedRun.branch`.
        round_index: round of the run.
        pretrained: whether to use the encoder as pre-training left it, before fine-tuning.
        batch: batch size.

    Returns:
        The reason for each file that cannot be read; these are missing in the output.

    Raises:
        RunError: the run has no such network, or no image can be read.
        DataError: an image path does not exist, or a folder contains no images.
        AccessError: the file cannot be written, or would replace an image.
    """
    if batch < 1:
        raise RunError(f"batch is {batch}; it must be positive.")
    if pretrained and branch is not None:
        raise RunError("--branch selects a fine-tuned branch, which excludes --pretrained.")
    with explain_storage_errors(*images):
        files = find_given(images)
    require_output(out, (".npz", ".csv"), files)
    run = SavedRun(workdir)
    run.require_round(round_index)
    if branch is None and not run.paths.finetuned(run.branch().name, round_index).exists():
        pretrained = pretrained or _encoder_path(run, round_index).exists()
    model, variables, path = _load(run, branch, round_index, pretrained=pretrained)
    logger.info("Computing features by %s", path)
    features, unreadable = _compute(run, model, variables, files, batch)
    readable = [str(file) for file in files if file not in unreadable]
    if not readable:
        title = f"No image can be read; {out} is not written:"
        raise RunError(list_unreadable(title, unreadable))
    _write(out, readable, features)
    console.terminal.print(
        f"{len(readable)} images with {features.shape[1]} features each, by {path}\n"
        f"Written to {out}",
        soft_wrap=True,
    )
    return unreadable


def _write(out: Path, files: Sequence[str], features: np.ndarray) -> None:
    """Writes features, float [N, D], and the names of their files as .npz or .csv."""
    with explain_storage_errors(out.parent):
        if out.suffix == ".npz":
            write_npz(out, {"files": np.array(files), "features": features})
        else:
            _write_csv(out, files, features)


def _encoder_path(run: SavedRun, round_index: int) -> Path:
    return run.paths.autoencoder(run.paths.split_index(round_index))


def _load(
    run: SavedRun, branch: str | None, round_index: int, *, pretrained: bool
) -> tuple[Any, PyTree, Path]:
    """Returns a network, its variables, and the file that they come from."""
    if not pretrained:
        return run.classifier(run.branch(branch), round_index)
    path = _encoder_path(run, round_index)
    if not path.exists():
        raise RunError(f"There is no {path}: the run has no finished pre-training.")
    model = pretrain.create_autoencoder(run.config)
    params = transfer.load_autoencoder(path, model)["encoder"]
    return model.encoder, {"params": params}, path


def _compute(
    run: SavedRun, model: Model, variables: PyTree, files: Sequence[Path], batch: int
) -> tuple[np.ndarray, dict[Path, str]]:
    """Returns the features of the readable images, float32 [n, D], and reasons for the others."""
    mesh, data, view = sharding.make_mesh(), run.config.data, Views(run, view_settings(run.config))
    size = sharding.divisible(min(batch, len(files)), mesh)
    program: Callable = platform.jit(
        lambda variables, pixels: sharding.gather(
            pooled(model, variables, augment.normalize(sharding.split_batch(pixels, mesh))), mesh
        )
    )
    variables = sharding.replicate(variables, mesh)
    views = read_ahead(lambda i: view(files[i]), 0, len(files))
    shape = (-1, data.image_size, data.image_size, 1 if data.color == "grey" else 3)
    unreadable: dict[Path, str] = {}
    features: list[np.ndarray] = []
    with console.progress_bar("images") as bar:
        task = bar.add_task("Features", total=len(files), status="compiling")
        pairs = zip(files, views, strict=True)
        while chunk := list(itertools.islice(pairs, size)):
            unreadable |= {file: x for file, x in chunk if isinstance(x, str)}
            readable = [x for _, x in chunk if not isinstance(x, str)]
            pixels = pad_batch(np.array(readable, np.uint8).reshape(shape), size)
            features.append(np.asarray(program(variables, pixels))[: len(readable)])
            bar.update(task, advance=len(chunk), status="")
    return np.concatenate(features), unreadable


def _write_csv(out: Path, files: Sequence[str], features: np.ndarray) -> None:
    with open_atomically(
        out, "w", newline="", encoding="utf-8", errors="backslashreplace"
    ) as table:
        writer = csv.writer(table)
        writer.writerow(["file", *(f"feature_{k}" for k in range(features.shape[1]))])
        for file, row in zip(files, features, strict=True):
            writer.writerow([spreadsheet_name(file), *(f"{x:.8g}" for x in row)])
