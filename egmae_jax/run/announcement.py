"""The first log lines of a run: its data, networks and devices, and warnings about them."""

import logging

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from egmae_jax.core.errors import shorten_list
from egmae_jax.data import splits
from egmae_jax.method import corruption
from egmae_jax.run import default_config
from egmae_jax.run.config import microbatch_sizes
from egmae_jax.run.context import Run

logger = logging.getLogger(__name__)


def announce(run: Run) -> None:
    """Logs the data, networks and devices of a run, with warnings about unusual settings."""
    _announce_data(run)
    _announce_networks(run)
    for stage in ("pretrain", "finetune") if run.pretrainings else ("finetune",):
        config = run.config[stage]
        if config.warmup_epochs >= config.epochs > 0:
            logger.warning(
                "%s.warmup_epochs is %s of %d epochs: the learning rate rises until the end",
                stage,
                config.warmup_epochs,
                config.epochs,
            )
    if run.pretrainings:
        _announce_unread(run.config.corruption)
    elif unread := [x for x in ("unlabelled", "weights", "probe_epochs") if run.config.pretrain[x]]:
        logger.warning(
            "No branch is pre-trained, so that these have no effect: pretrain.%s",
            ", pretrain.".join(unread),
        )
    _announce_labels(run)
    _announce_balance(run.config.finetune)


def _announce_labels(run: Run) -> None:
    """Logs how many labels the rounds use, if finetune.label_share leaves some out."""
    for round_index in run.rounds if run.config.finetune.label_share < 1 else ():
        labelled = run.data.labelled(round_index)
        logger.info(
            "Round %d uses the labels of %d of %d training images, in %d groups (%s)",
            round_index,
            labelled["images"],
            labelled["of"],
            labelled["groups"],
            ", ".join(f"{name} {count}" for name, count in labelled["by_class"].items()),
        )


def _announce_balance(settings: FrozenConfigDict) -> None:
    """Warns of settings that the loss does not read, and of several that favour rare classes."""
    default = default_config.get_config().finetune
    for loss, name in (("focal", "focal_gamma"), ("logit_adjusted", "logit_adjustment_tau")):
        if settings.loss != loss and settings[name] != default[name]:
            logger.warning(
                "finetune.%s is %s, but finetune.loss=%s does not read it",
                name,
                settings[name],
                settings.loss,
            )
    names = [
        f"finetune.{name}={value}"
        for name, value, balances in (
            ("loss", settings.loss, settings.loss == "logit_adjusted"),
            ("class_weights", settings.class_weights, settings.class_weights != "none"),
            ("sampling", settings.sampling, settings.sampling == "balanced"),
        )
        if balances
    ]
    if len(names) > 1:
        logger.warning(
            "%s: each makes up for unequal classes, so together they favour rare classes",
            " and ".join(names),
        )


def _announce_unread(config: FrozenConfigDict) -> None:
    """Warns of changed settings of the corruption that its kind does not read."""
    default = default_config.get_config().corruption
    read = corruption.settings(config.kind)
    for name in ("scale", "threshold", "mask_ratio"):
        if name not in read and config[name] != default[name]:
            logger.warning(
                "corruption.%s is %s, but corruption.kind=%s does not read it",
                name,
                config[name],
                config.kind,
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
    if run.data.unlabelled is not None:
        level = logging.INFO if run.data.unlabelled.report(0)["used"] else logging.WARNING
        logger.log(level, "pretrain.unlabelled: %s", run.data.unlabelled.account(0))
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
        ", ".join(
            branch.name
            if branch.name == branch.model_name
            else f"{branch.name} ({branch.model_name})"
            for branch in run.branches
        ),
        config.model.dtype,
        run.mesh.size,
        jax.devices()[0].device_kind,
        run.paths.workdir,
    )
    if (copies := run.mesh.shape["copy"]) > 1:
        logger.warning(
            "%d images (pretrain.batch_size / accumulation_steps) and %d (of finetune) can be "
            "divided among only %d devices: each share is computed by %d devices",
            *microbatch_sizes(config),
            run.mesh.size // copies,
            copies,
        )
