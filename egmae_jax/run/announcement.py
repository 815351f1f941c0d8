"""What a run says at its start: what is about to run, and what of it is odd."""

import logging

import jax
import numpy as np

from egmae_jax.data import splits
from egmae_jax.run.context import Run

logger = logging.getLogger(__name__)


def announce(run: Run) -> None:
    """Logs the data, the networks and the devices of a run, and warns of what is odd."""
    _announce_data(run)
    _announce_networks(run)
    _announce_schedules(run)


def _announce_data(run: Run) -> None:
    prepared = run.data.prepared
    group_sizes = np.unique(prepared.groups, return_counts=True)[1]
    logger.info(
        "%d images in %d classes and %d groups, which are not split: %d of several images, "
        "%d of one; protocol %s",
        len(prepared.files),
        len(prepared.classes),
        len(group_sizes),
        int((group_sizes > 1).sum()),
        int((group_sizes == 1).sum()),
        run.data.protocol,
    )
    logger.info("%s", run.data.account)
    if run.data.made_parts:
        logger.warning(
            "The data set has no %s part of its own: taken by groups from its train part",
            " and no ".join(run.data.made_parts),
        )
    held_out = int(prepared.held_out.sum())
    if held_out and run.config.data.protocol != "official":
        logger.warning(
            "%d images are in official validation or test parts, which data.protocol=%s "
            "splits anew; data.protocol=official keeps them",
            held_out,
            run.config.data.protocol,
        )
    conflicts = splits.conflicts(prepared.labels, prepared.pairs)
    if len(conflicts):
        first = [f"{prepared.files[i]} | {prepared.files[j]}" for i, j in conflicts[:10]]
        logger.warning(
            "%d pairs of near-duplicates have different labels (data.on_conflict is %s), "
            "such as %s",
            len(conflicts),
            run.config.data.on_conflict,
            ", ".join(first),
        )


def _announce_networks(run: Run) -> None:
    config = run.config
    logger.info(
        "%s in %s on %d x %s; results go to %s",
        ", ".join(f"{branch.name} ({branch.model_name})" for branch in run.branches),
        config.model.dtype,
        run.mesh.size,
        jax.devices()[0].device_kind,
        run.paths.workdir,
    )
    if (copies := run.mesh.shape["copy"]) > 1:
        logger.warning(
            "pretrain.batch_size=%d and finetune.batch_size=%d divide among %d of the devices: "
            "%d of them compute the same",
            config.pretrain.batch_size,
            config.finetune.batch_size,
            run.mesh.size // copies,
            copies,
        )
    random = [branch.name for branch in run.branches if not branch.is_mae]
    if config.finetune.trainable != "all" and config.imagenet.weights == "none" and random:
        logger.warning(
            "finetune.trainable=%s freezes layers of %s at random weights; a ResNet's frozen "
            "blocks then add nothing at all, their last norm starting from 0",
            config.finetune.trainable,
            ", ".join(random),
        )


def _announce_schedules(run: Run) -> None:
    parts_of = {"finetune": ("train",)}
    if run.pretrainings:
        parts_of["pretrain"] = run.config.pretrain.splits
    for stage, parts in parts_of.items():
        config, count = run.config[stage], len(run.data.indices(0, *parts))
        if config.batch_size > count:
            logger.warning(
                "%s.batch_size is %d, but there are %d images: a batch holds some twice",
                stage,
                config.batch_size,
                count,
            )
        if config.warmup_epochs >= config.epochs:
            logger.warning(
                "%s.warmup_epochs is %s of %d epochs: the learning rate rises to the end",
                stage,
                config.warmup_epochs,
                config.epochs,
            )
