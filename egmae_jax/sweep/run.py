"""Runs the variants of a sweep one after the other, each in its folder.

Variants that pre-train the same do so once: the others begin with a copy of the pre-trained
autoencoder, of the split that it was trained on and of its log.
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
from egmae_jax.run import branches, logs, rules
from egmae_jax.run.workdir import Paths, record_config, require_same_run
from egmae_jax.sweep.variants import Sweep, Variant

# Fields, by how they begin, that pre-training does not depend on.
_LATER = ("branches", "finetune.", "imagenet.", "fusion.", "evaluation.", "tensorboard.")
# Files that pre-training leaves and goes on from; with folds they are in the rounds' folders.
_PRETRAINED = (
    "environment.json",
    "intensity_range.json",
    "**/splits.json",
    "**/pretrain/*.json",
    "**/pretrain/*.safetensors",
    "tensorboard/pretrain/**/*.png",
)
logger = logging.getLogger(__name__)


def check(sweep: Sweep, out: Path) -> None:
    """Checks all variants before any is run.

    Args:
        sweep: the sweep.
        out: its folder.

    Raises:
        ConfigError: a variant cannot be run, or its folder holds another run.
        DamagedFileError: the config.json of a variant's folder cannot be read.
    """
    for variant in sweep.variants:
        try:
            rules.check(variant.config, jax.device_count())
        except ConfigError as error:
            raise ConfigError(f"In the variant {variant.name!r}: {error}") from None
        require_same_run(out / variant.folder, variant.config)


def run(sweep: Sweep, out: Path) -> dict[str, str]:
    """Runs the variants that are not complete; one that fails does not stop the others.

    Args:
        sweep: the sweep, which has passed `check`.
        out: its folder.

    Returns:
        The error of each variant that failed, by name.
    """
    failures: dict[str, str] = {}
    for number, variant in enumerate(sweep.variants, 1):
        workdir = out / variant.folder
        place = f"Variant {number} of {len(sweep.variants)}, {variant.name}"
        if (workdir / "results.json").exists():
            logger.info("%s: complete", place)
            continue
        logger.info("%s: %s", place, workdir)
        preemption.set_run_name(f"variant {variant.name}")
        try:
            copy_pretraining(variant, sweep.variants, out)
            experiment.run(variant.config, workdir)
        except UserError as error:
            failures[variant.name] = str(error)
            logger.error("%s failed: %s", place, error)
        except Exception as error:  # may be of this variant alone
            failures[variant.name] = repr(error)
            logger.exception("%s failed", place)
        gc.collect()  # frees the images of this variant
    return failures


def copy_pretraining(variant: Variant, others: Sequence[Variant], out: Path) -> None:
    """Begins a variant with the pre-training of another, if one has finished that is the same.

    Args:
        variant: the variant that is about to run; if it has begun before, nothing is copied.
        others: the variants of the sweep.
        out: the folder of the sweep.
    """
    workdir, wanted = out / variant.folder, pretraining_changes(variant)
    if wanted is None or workdir.exists():
        return
    for other in others:
        if pretraining_changes(other) == wanted and _is_pretrained(other, out):
            break
    else:
        return
    source, partial = out / other.folder, out / f".{variant.folder}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # a kill may have left it
    for path in (path for pattern in _PRETRAINED for path in source.glob(pattern)):
        write_atomically(partial / path.relative_to(source), path.read_bytes())
    rows = logs.read(Paths(source, folds=False).metrics)
    lines = [line + b"\n" for line, row in rows if row["stage"] == "pretrain"]
    write_atomically(Paths(partial, folds=False).metrics, b"".join(lines))
    write_json(_note(variant, partial), {"workdir": f"../{other.folder}"})
    record_config(partial, variant.config)
    partial.rename(workdir)
    logger.info("%s: takes the pre-trained autoencoder of %s", variant.name, other.name)


def pretraining_changes(variant: Variant) -> dict[str, Any] | None:
    """The changes of a variant that pre-training depends on; None if nothing is pre-trained."""
    if not any(branch.is_mae for branch in branches.from_config(variant.config)):
        return None
    return {k: value for k, value in variant.changes.items() if not k.startswith(_LATER)}


def pretraining_source(variant: Variant, out: Path) -> str | None:
    """Folder of the variant that pre-trained for this one; None if it did so itself."""
    path = _note(variant, out / variant.folder)
    return read_json(path)["workdir"] if path.is_file() else None


def _note(variant: Variant, workdir: Path) -> Path:
    return _paths(variant, workdir).autoencoder(0).with_name("taken_from.json")


def _is_pretrained(variant: Variant, out: Path) -> bool:
    paths, rounds = _paths(variant, out / variant.folder), variant.config.rounds
    splits = range(rounds.count if paths.folds else 1)
    return all(paths.autoencoder(split).exists() for split in splits)


def _paths(variant: Variant, workdir: Path) -> Paths:
    return Paths(workdir, folds=variant.config.rounds.kind == "folds")
