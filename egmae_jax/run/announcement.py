"""The first log lines of a run: its data, networks and devices, and warnings about them."""

import logging

import jax
import numpy as np

from egmae_jax.core.errors import shorten_list
from egmae_jax.data import splits
from egmae_jax.run.context import Run

logger = logging.getLogger(__name__)


def announce(run: Run) -> None:
    """Logs the data, networks and devices of a run, with warnings about unusual settings."""
    _announce_data(run)
    _announce_networks(run)
    for stage in ("pretrain", "finetune") if run.pretrainings else ("finetune",):
        config = run.config[stage]
        if config.warmup_epochs >= config.epochs:
            logger.warning(
                "%s.warmup_epochs is %s of %d epochs: the learning rate rises until the end",
                stage,
                config.warmup_epochs,
                config.epochs,
            )


def _announce_data(run: Run) -> None:
    prepared = run.data.prepared
    group_sizes = np.unique(prepared.groups, return_counts=True)[1]
    logger.info(
        "%d images in %d classes and %d groups (%d of several images, %d of one); protocol %s",
        len(prepared.files),
        len(prepared.classes),
        len(group_sizes),
        int((group_sizes > 1).sum()),
        int((group_sizes == 1).sum()),
        run.config.data.protocol,
    )
    logger.info("%s", run.data.account)
    if run.data.made_parts:
        logger.warning(
            "The data set has no official %s part: it is taken from the train part, by groups",
            " and no official ".join(run.data.made_parts),
        )
    held_out = int(prepared.held_out.sum())
    if held_out and run.config.data.protocol != "official":
        logger.warning(
            "%d images are in official validation or test parts, which data.protocol=%s "
            "ignores; data.protocol=official keeps them",
            held_out,
            run.config.data.protocol,
        )
    conflicts = splits.conflicts(prepared.labels, prepared.pairs)
    if len(conflicts):
        logger.warning(
            "%d pairs of near-duplicates have different labels (data.on_conflict is %s): %s",
            len(conflicts),
            run.config.data.on_conflict,
            shorten_list([f"{prepared.files[i]} | {prepared.files[j]}" for i, j in conflicts]),
        )


def _announce_networks(run: Run) -> None:
    config = run.config
    logger.info(
        "Branches %s in %s on %d x %s; results go to %s",
        ", ".join(f"{branch.name} ({branch.model_name})" for branch in run.branches),
        config.model.dtype,
        run.mesh.size,
        jax.devices()[0].device_kind,
        run.paths.workdir,
    )
    if (copies := run.mesh.shape["copy"]) > 1:
        logger.warning(
            "pretrain.batch_size=%d and finetune.batch_size=%d can be divided among only %d "
            "devices: each share is computed by %d devices",
            config.pretrain.batch_size,
            config.finetune.batch_size,
            run.mesh.size // copies,
            copies,
        )
