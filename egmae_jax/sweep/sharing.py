"""Variants whose pre-training is the same take it from the one that is through with it.

Pre-training depends on the data, the network, the corruption, its own section of the config and the
seed, on nothing of fine-tuning. A run that finds its autoencoder there does not make it anew.
"""

import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from egmae_jax.core.files import read_json, write_atomically, write_json
from egmae_jax.run import branches
from egmae_jax.run.config import FREE_FIELDS, flatten
from egmae_jax.run.workdir import Paths, lock, record_config
from egmae_jax.sweep.variants import Variant

_ELSEWHERE = ("finetune.", "imagenet.", "fusion.", "evaluation.", "tensorboard.")
_NOTE = "taken_from.json"
logger = logging.getLogger(__name__)


def pretraining_of(config: ConfigDict) -> dict[str, Any] | None:
    """All fields that pre-training depends on; None where nothing is pre-trained."""
    if not any(branch.is_mae for branch in branches.of(config)):
        return None
    fields = {
        field: value
        for field, value in flatten(config).items()
        if field not in (*FREE_FIELDS, "branches") and not field.startswith(_ELSEWHERE)
    }
    if config.rounds.kind == "seeds":  # all of which share one
        del fields["rounds.count"]
    return fields


def take_pretraining(variant: Variant, others: list[Variant], out: Path) -> None:
    """Copies what another variant has pre-trained, if this one would pre-train the same.

    Args:
        variant: that is about to run.
        others: of the sweep.
        out: the folder of the sweep.
    """
    wanted, target = pretraining_of(variant.config), _paths(variant, out)
    if wanted is None or _is_pretrained(variant, out) or _has_begun_pretraining(variant, out):
        return
    for other in others:
        if pretraining_of(other.config) == wanted and _is_pretrained(other, out):
            break
    else:
        return
    source = _paths(other, out)
    with lock(target.workdir):
        record_config(target.workdir, variant.config)
        _copy_log(source, target)
        if source.intensity_range.exists():
            _copy(source.intensity_range, target.intensity_range)
        for split in _splits(variant.config):
            _copy(source.splits(split), target.splits(split))
            _copy(source.pretraining_report(split), target.pretraining_report(split))
            note = {"workdir": f"../{other.folder}"}
            write_json(target.autoencoder(split).with_name(_NOTE), note)
            _copy(source.autoencoder(split), target.autoencoder(split))  # says that all is there
    logger.info("%s: pre-trained as %s, whose autoencoder it takes", variant.name, other.name)


def taken_from(variant: Variant, out: Path) -> str | None:
    """The folder of the variant that has pre-trained for this one."""
    path = _paths(variant, out).autoencoder(0).with_name(_NOTE)
    return str(read_json(path).get("workdir")) if path.is_file() else None


def _paths(variant: Variant, out: Path) -> Paths:
    return Paths(out / variant.folder, folds=variant.config.rounds.kind == "folds")


def _splits(config: ConfigDict) -> range:
    return range(config.rounds.count if config.rounds.kind == "folds" else 1)


def _is_pretrained(variant: Variant, out: Path) -> bool:
    paths = _paths(variant, out)
    return all(
        paths.autoencoder(split).exists() and paths.pretraining_report(split).exists()
        for split in _splits(variant.config)
    )


def _has_begun_pretraining(variant: Variant, out: Path) -> bool:
    paths = _paths(variant, out)
    return any(
        paths.autoencoder(split).with_name("checkpoints").exists()
        for split in _splits(variant.config)
    )


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, source.read_bytes())


def _copy_log(source: Paths, target: Paths) -> None:
    """The lines of pre-training, and its pictures."""
    if source.metrics.exists() and not target.metrics.exists():
        lines = source.metrics.read_bytes().splitlines(keepends=True)
        pretraining = [line for line in lines if b'"stage": "pretrain"' in line]
        write_atomically(target.metrics, b"".join(pretraining))
    for picture in (source.workdir / "tensorboard" / "pretrain").rglob("*.png"):
        _copy(picture, target.workdir / picture.relative_to(source.workdir))
