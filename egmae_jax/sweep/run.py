"""Runs the variants of a sweep one after another, each in its own folder.

Variants with the same pre-training share it: all but the first start with copies of the pre-trained
autoencoder, its splits and its log.
"""

import gc
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from egmae_jax import experiment
from egmae_jax.core import preemption
from egmae_jax.core.errors import ConfigError, UserError
from egmae_jax.core.files import read_json, write_atomically, write_json
from egmae_jax.run import branches, imagenet, logs, rules
from egmae_jax.run.config import split_indices
from egmae_jax.run.workdir import Paths, record_config, require_same_run
from egmae_jax.sweep.variants import Sweep, Variant

# Prefixes of the config fields that do not affect pre-training.
_LATER_FIELDS = ("branches", "finetune.", "imagenet.", "fusion.", "evaluation.", "tensorboard.")
# Files that pre-training writes and fine-tuning needs; with folds, they are in the rounds' folders.
_PRETRAINING_FILES = (
    "environment.json",
    "intensity_range.json",
    "**/splits.json",
    "**/unlabelled.json",
    "**/pretrain/*.json",
    "**/pretrain/*.safetensors",
    "tensorboard/pretrain/**/*.png",
)
logger = logging.getLogger(__name__)


def check(sweep: Sweep, out: Path) -> None:
    """Checks the configs and folders of all variants before the first run.

    Args:
        sweep: the sweep.
        out: folder of the sweep.

    Raises:
        ConfigError: the config of a variant is invalid, or its folder holds a different run.
        DamagedFileError: the config.json of a variant's folder cannot be read.
    """
    for variant in sweep.variants:
        try:
            rules.check(variant.config, jax.device_count())
        except ConfigError as error:
            raise ConfigError(f"In the variant {variant.name!r}: {error}") from None
        require_same_run(out / variant.folder, variant.config)


def run(sweep: Sweep, out: Path) -> dict[str, str]:
    """Runs all variants that are not complete, and continues after one that fails.

    Args:
        sweep: a sweep that has passed `check`.
        out: folder of the sweep.

    Returns:
        Error messages of the variants that failed, by name.

    Raises:
        MissingWeightsError: ImageNet weights of a variant cannot be found; nothing has been run.
    """
    remaining = [x for x in sweep.variants if not (out / x.folder / "results.json").exists()]
    for config in (variant.config for variant in remaining):
        imagenet.require_available(config.imagenet.weights, branches.from_config(config))
    failures: dict[str, str] = {}
    for number, variant in enumerate(sweep.variants, 1):
        workdir = out / variant.folder
        label = f"Variant {number} of {len(sweep.variants)}, {variant.name}"
        if (workdir / "results.json").exists():
            logger.info("%s: is already complete", label)
            continue
        logger.info("%s: %s", label, workdir)
        preemption.set_run_name(f"variant {variant.name}")
        try:
            copy_pretraining(variant, sweep.variants, out)
            experiment.run(variant.config, workdir)
        except UserError as error:
            failures[variant.name] = str(error)
            logger.error("%s failed: %s", label, error)
        except Exception as error:  # other variants may still succeed
            failures[variant.name] = repr(error)
            logger.exception("%s failed", label)
        gc.collect()  # frees the images in memory
    return failures


def copy_pretraining(variant: Variant, others: Sequence[Variant], out: Path) -> None:
    """Copies the finished pre-training of another variant, if it equals that of this variant.

    Args:
        variant: variant that is about to run; if its folder exists, nothing is copied.
        others: all variants of the sweep.
        out: folder of the sweep.
    """
    workdir, changes = out / variant.folder, pretraining_changes(variant)
    if changes is None or workdir.exists():
        return
    for other in others:
        if pretraining_changes(other) == changes and _is_pretrained(other, out):
            break
    else:
        return
    source, partial = out / other.folder, out / f".{variant.folder}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left over if the process was killed
    for path in (path for pattern in _PRETRAINING_FILES for path in source.glob(pattern)):
        write_atomically(partial / path.relative_to(source), path.read_bytes())
    rows = logs.read(Paths(source, folds=False).metrics)
    lines = [line + b"\n" for line, row in rows if row["stage"] == "pretrain"]
    write_atomically(Paths(partial, folds=False).metrics, b"".join(lines))
    write_json(_source_file(variant, partial), {"workdir": f"../{other.folder}"})
    record_config(partial, variant.config)
    partial.rename(workdir)
    logger.info("%s: uses the pre-trained autoencoder of %s", variant.name, other.name)


def pretraining_changes(variant: Variant) -> dict[str, Any] | None:
    """Returns the changes of a variant that affect pre-training; None without pre-training."""
    if not any(branch.is_mae for branch in branches.from_config(variant.config)):
        return None
    return {k: value for k, value in variant.changes.items() if not k.startswith(_LATER_FIELDS)}


def pretraining_source(variant: Variant, out: Path) -> str | None:
    """Returns the folder whose pre-training a variant uses, relative to its own folder.

    None if the variant was pre-trained itself.
    """
    path = _source_file(variant, out / variant.folder)
    return read_json(path)["workdir"] if path.is_file() else None


def _source_file(variant: Variant, workdir: Path) -> Path:
    return Paths.of(workdir, variant.config).autoencoder(0).with_name("taken_from.json")


def _is_pretrained(variant: Variant, out: Path) -> bool:
    paths = Paths.of(out / variant.folder, variant.config)
    return all(paths.autoencoder(i).exists() for i in split_indices(variant.config))
