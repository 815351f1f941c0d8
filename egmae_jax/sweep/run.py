"""Runs a sweep's variants one after the other; what is complete stays, what fails is told."""

import gc
import logging
from pathlib import Path

import jax

from egmae_jax import experiment
from egmae_jax.core import preemption
from egmae_jax.core.errors import UserError
from egmae_jax.run import config as configs
from egmae_jax.run import rules
from egmae_jax.run.workdir import require_same_run
from egmae_jax.sweep import sharing
from egmae_jax.sweep.variants import Sweep

logger = logging.getLogger(__name__)


def check(sweep: Sweep, out: Path) -> None:
    """Checks all variants before any is run.

    Args:
        sweep: the sweep.
        out: its folder.

    Raises:
        ConfigError: one cannot be run, or its folder holds another run.
        DamagedFileError: the config.json of a folder cannot be read.
    """
    for variant in sweep.variants:
        try:
            rules.check(variant.config, jax.device_count())
        except configs.ConfigError as error:
            raise configs.ConfigError(f"Of the variant {variant.name!r}: {error}") from None
        require_same_run(out / variant.folder, variant.config)


def run(sweep: Sweep, out: Path) -> dict[str, str]:
    """Runs the variants that are not complete, each in its folder.

    Args:
        sweep: the sweep, which `check` has found in order.
        out: its folder.

    Returns:
        Why a variant has failed, by name.
    """
    failures: dict[str, str] = {}
    for number, variant in enumerate(sweep.variants, 1):
        workdir = out / variant.folder
        place = f"Variant {number} of {len(sweep.variants)}, {variant.name}"
        if (workdir / "results.json").exists():
            logger.info("%s: complete", place)
            continue
        logger.info("%s: %s", place, workdir)
        preemption.begins_run(f"variant {variant.name}")
        try:
            sharing.take_pretraining(variant, list(sweep.variants), out)
            experiment.run(variant.config, workdir)
        except UserError as error:
            failures[variant.name] = str(error)
            logger.error("%s failed: %s", place, error)
        except Exception as error:  # the other variants need not wait for what only one has
            failures[variant.name] = repr(error)
            logger.exception("%s failed", place)
        gc.collect()  # its images
    return failures
