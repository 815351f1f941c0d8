"""Checks all fields of a config before a run starts any work.

The default config defines the types, tables list the choices and ranges of single fields, and
functions check the fields that depend on each other.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from egmae_jax import augmentations, models
from egmae_jax.augmentations import tta
from egmae_jax.core import hosts, sharding
from egmae_jax.core.errors import ConfigError
from egmae_jax.data import datasets, images, samples, splits
from egmae_jax.data.datasets import unlabelled
from egmae_jax.method import corruption, entropy, fusion, layer_entropy
from egmae_jax.models import registry, timm_names
from egmae_jax.models.init import KERNEL_INITS
from egmae_jax.run import branches, class_balance, default_config, epoch_selection
from egmae_jax.run.config import flatten, microbatch_sizes
from egmae_jax.training import losses

_CHOICES: dict[str, tuple[str, ...]] = {
    "data.on_error": ("raise", "skip"),
    "data.color": images.COLORS,
    "data.intensity_range": samples.RULES,
    "data.feeding": ("auto", "resident", "stream"),
    "data.on_conflict": ("keep", "drop"),
    "data.resize": images.RESIZE_MODES,
    "data.protocol": splits.PROTOCOLS,
    "model.dtype": ("float32", "bfloat16"),
    "entropy.color": entropy.COLORS,
    "model.kernel_init": KERNEL_INITS,
    "rounds.kind": ("seeds", "folds"),
    "finetune.trainable": layer_entropy.MODES,
    "finetune.loss": losses.NAMES,
    "finetune.select": epoch_selection.METRICS,
    "finetune.sampling": class_balance.SAMPLINGS,
    "fusion.kind": fusion.KINDS,
}


# Words for the type of a field, or (True) for its items if the field is a tuple.
_TYPE_WORDS = {
    (bool, False): "True or False",
    (int, False): "a whole number",
    (float, False): "a number",
    (str, False): "text",
    (float, True): "two numbers",
    (str, True): "names",
}


class _Range(NamedTuple):
    """A condition on values, and the fields that must satisfy it."""

    words: str  # completes the sentence "it must ..."
    holds: Callable[[Any], bool]
    fields: tuple[str, ...]


_RANGES = (
    _Range(
        "be positive",
        lambda x: x > 0,
        (
            *("data.image_size", "data.store_size", "corruption.patch_size", "corruption.scale"),
            *("decoder.dim", "model.layer_scale", "rounds.count"),
            *("pretrain.batch_size", "pretrain.learning_rate"),
            *("finetune.epochs", "finetune.batch_size", "finetune.learning_rate"),
            *("finetune.layer_decay", "finetune.accumulation_steps"),
            "pretrain.accumulation_steps",
            *("evaluation.batch_size", "evaluation.bootstrap_resamples"),
        ),
    ),
    _Range(
        "not be negative",
        lambda x: x >= 0,
        (
            *("corruption.threshold", "decoder.depth"),
            *("pretrain.warmup_epochs", "pretrain.weight_decay", "finetune.warmup_epochs"),
            *("finetune.weight_decay", "finetune.input_noise", "checkpoint.save_seconds"),
            *("finetune.focal_gamma", "finetune.logit_adjustment_tau"),
            *("nonfinite.max_skipped", "tensorboard.panel_epochs", "pretrain.probe_epochs"),
            *("pretrain.clip_norm", "finetune.clip_norm", "finetune.patience"),
        ),
    ),
    _Range(
        "not be negative, except for -1 (automatic)",
        lambda x: x >= 0 or x == -1,
        ("data.resident_gigabytes", "data.host_gigabytes"),
    ),
    _Range(
        "lie between 0 and 1",
        lambda x: 0 < x < 1,
        (
            *("data.test_share", "data.validation_share", "data.near_duplicate_threshold"),
            "corruption.mask_ratio",
        ),
    ),
    _Range(
        "be at least 0 and below 1",
        lambda x: 0 <= x < 1,
        ("finetune.drop_path_rate", "finetune.label_smoothing", "finetune.ema_decay"),
    ),
    _Range("be at least 0 and below 2**31", lambda x: 0 <= x < 2**31, ("seed", "data.split_seed")),
    _Range(
        "be above 0 and at most 1",
        lambda x: 0 < x <= 1,
        ("finetune.trainable_share", "finetune.label_share"),
    ),
    _Range(
        "be a divisor of 256, 2 or more", lambda x: x > 1 and 256 % x == 0, ("entropy.num_bins",)
    ),
    _Range(
        "be two numbers, each at least 0 and below 1",
        lambda x: len(x) == 2 and all(0 <= beta < 1 for beta in x),
        ("pretrain.betas", "finetune.betas"),
    ),
    _Range(
        "be (lowest, highest), both above 0 and at most 1",
        lambda x: len(x) == 2 and 0 < x[0] <= x[1] <= 1,
        ("pretrain.crop_scale",),
    ),
)


def check(config: ConfigDict, num_devices: int) -> None:
    """Checks every field of a config and reports all invalid fields at once.

    Args:
        config: config with the fields of `run/default_config.py`.
        num_devices: number of devices on all hosts.

    Raises:
        ConfigError: fields are invalid; the message lists each with its value and valid values.
    """
    # Ranges can be checked only if all types are correct.
    _require_none(
        list(type_problems(config))
        or [
            *_field_problems(config),
            *_data_problems(config),
            *_branch_problems(config),
            *_pretraining_problems(config),
            *_corruption_problems(config),
            *_training_problems(config),
            *_evaluation_problems(config),
            *class_balance.problems(config.finetune),
            *_mesh_problems(config, num_devices),
        ]
    )


def check_data(config: ConfigDict) -> None:
    """Checks the fields of config.data as `check` does, but not whether they suit the networks."""
    problems = list(type_problems(config)) or [*_field_problems(config), *_data_problems(config)]
    _require_none([problem for problem in problems if problem.startswith("data.")])


def _require_none(problems: list[str]) -> None:
    if problems:
        raise ConfigError("The config cannot be run:\n  " + "\n  ".join(problems))


def type_problems(config: ConfigDict | Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for each field that is missing, of the wrong type, or not finite."""
    values = flatten(config)
    for field, default in flatten(default_config.get_config()).items():
        if field not in values:
            yield f"{field} is missing."
            continue
        value, is_tuple = values[field], isinstance(default, list)
        kind = type(next(iter(default), "")) if is_tuple else type(default)
        words = _TYPE_WORDS[kind, is_tuple]
        if is_tuple != isinstance(value, list):
            yield f"{field} is {value!r}; it must be {'a tuple of ' * is_tuple}{words}."
            continue
        present, infinitive = ("holds", "hold") if is_tuple else ("is", "be")
        for item in value if is_tuple else [value]:
            if not _has_type(item, kind):
                yield f"{field} {present} {item!r}; it must {infinitive} {words}."
            elif isinstance(item, float) and not math.isfinite(item):
                yield f"{field} is {item}; it must be finite."


def _has_type(value: Any, kind: type) -> bool:
    """Whether a value is of a field's type; an int is also a float, but a bool is no number."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _field_problems(config: ConfigDict) -> Iterator[str]:
    flat = flatten(config)
    for field, find in (("data.name", datasets.get), ("corruption.kind", corruption.settings)):
        try:
            find(flat[field])
        except ConfigError as error:
            yield f"{field}: {error}"
    for field, allowed in _CHOICES.items():
        if flat[field] not in allowed:
            known = ", ".join(map(repr, allowed))
            yield f"{field} is {flat[field]!r}; it must be one of {known}."
    for words, holds, fields in _RANGES:
        for field in fields:
            if not holds(flat[field]):
                yield f"{field} is {flat[field]}; it must {words}."


def _data_problems(config: ConfigDict) -> Iterator[str]:
    data, rounds = config.data, config.rounds
    if not data.dir:
        yield "data.dir is empty; give the folder of the images: --config.data.dir=<folder>."
    for field in ("dir", "cache_dir"):
        try:
            Path(data[field]).expanduser()
        except RuntimeError:
            yield f"data.{field} is {data[field]!r}, but this user has no home folder."
    try:
        if data.group_pattern and not re.compile(data.group_pattern).groups:
            yield f"data.group_pattern is {data.group_pattern!r}; it must contain a (group)."
    except re.error as error:
        yield f"data.group_pattern is {data.group_pattern!r}: {error}."
    if len(data.classes) == 1:
        yield f"data.classes is {tuple(data.classes)}; it must name two or more, or be () for all."
    if data.test_share + data.validation_share >= 1:
        yield "data.test_share + data.validation_share leave nothing to train on; use less than 1."
    if rounds.kind == "folds":
        if data.protocol == "official":
            yield "rounds.kind is 'folds', but data.protocol='official' excludes it; use 'grouped'."
        if rounds.count < 3:
            yield f"rounds.count is {rounds.count}; rounds.kind='folds' needs at least 3."
        elif data.validation_share + 1 / rounds.count >= 1:
            yield "data.validation_share and a fold for testing leave nothing to train on."
    for field, value in (
        ("finetune.resize", config.finetune.resize),
        ("evaluation.resize", config.evaluation.resize),
        ("data.store_size", data.store_size),
    ):
        if value < data.image_size:
            yield f"{field} is {value}; it must be at least data.image_size={data.image_size}."


def _branch_problems(config: ConfigDict) -> Iterator[str]:
    field = "model.name"
    try:
        models.create(config.model.name, num_classes=2)
        field = "branches"
        chosen = branches.from_config(config)
        networks = [models.create(branch.model_name, num_classes=2) for branch in chosen]
    except ConfigError as error:
        yield f"{field}: {error}"
        return
    if len(networks) == 1 and config.fusion.kind in fusion.KINDS[1:]:
        yield f"fusion.kind is {config.fusion.kind!r}, but there is only one branch; use 'mean'."
    if config.model.rematerialize and not any(network.can_remat for network in networks):
        yield "model.rematerialize is True, but no branch has a network with it (ConvNeXt)."
    for name in {branch.model_name: None for branch in chosen}:
        yield from _own_network_problems(config, name)
    pretrains = any(branch.is_mae for branch in chosen)
    yield from _side_problems(config, networks, config.corruption.patch_size if pretrains else 1)


def _own_network_problems(config: ConfigDict, name: str) -> Iterator[str]:
    """Checks what a run asks of a network that is not one of the package's."""
    if registry.NETWORKS.is_own(name):
        return
    network = models.create(name, num_classes=2)
    try:
        timm_names.expected_tensors(name, 2)
    except NotImplementedError as error:
        yield f"The network {name!r} has {error}; register it with `patterns` (CONTRIBUTING.md)."
    if network.initial_std is None and config.model.kernel_init != KERNEL_INITS[0]:
        yield (
            f"model.kernel_init is {config.model.kernel_init!r}, but the network {name!r} has its "
            f"own initializers; use {KERNEL_INITS[0]!r}."
        )


def _side_problems(
    config: ConfigDict, networks: Iterable[models.Model], patch_size: int
) -> Iterator[str]:
    """Checks data.image_size against what must divide it, and the smallest size of networks."""
    side = config.data.image_size
    demands = {
        f"{type(network).__name__}'s stride {network.side_multiple}": network.side_multiple
        for network in networks
        if network.side_multiple > 1
    }
    demands |= {f"corruption.patch_size={patch_size}": patch_size} if patch_size > 1 else {}
    divisor = math.lcm(*demands.values())
    if side % divisor:
        nearest = max(1, round(side / divisor)) * divisor
        yield (
            f"data.image_size is {side}; {' and '.join(demands)} must divide it; the nearest is "
            f"{nearest}."
        )
    if side < models.MIN_SIDE:
        yield f"data.image_size is {side}; the networks need at least {models.MIN_SIDE}."


def _pretraining_problems(config: ConfigDict) -> Iterator[str]:
    parts, folders = tuple(config.pretrain.splits), tuple(config.pretrain.unlabelled)
    if not (parts or folders) or set(parts) - set(splits.PARTS):
        yield (
            f"pretrain.splits is {parts}; it must name one or more of {', '.join(splits.PARTS)}, "
            "or be () if pretrain.unlabelled names folders."
        )
    if config.data.name == unlabelled.NAME and (
        tuple(config.branches) != ("mae",) or config.pretrain.probe_epochs
    ):
        yield (
            f"data.name is {unlabelled.NAME!r}, images without labels: branches must be ('mae',) "
            "and pretrain.probe_epochs 0."
        )
    if not all(folders) or len(set(folders)) < len(folders):
        yield f"pretrain.unlabelled is {folders}; it must name folders, each once."
    if (epochs := config.pretrain.epochs) < (0 if config.pretrain.weights else 1):
        yield (
            f"pretrain.epochs is {epochs}; it must be positive, or 0 to take pretrain.weights as "
            "they are."
        )


def _corruption_problems(config: ConfigDict) -> Iterator[str]:
    settings = config.corruption
    largest = settings.scale * math.log(max(config.entropy.num_bins, 2))
    # The variance of 'contrast_noise' is not limited by the entropy of a patch.
    is_limited = settings.kind in ("entropy_noise", "shuffled_entropy", "uniform_noise")
    if is_limited and settings.threshold >= largest > 0:
        yield (
            f"corruption.threshold is {settings.threshold}: no patch would be masked, because the "
            "noise variance is at most corruption.scale * ln(entropy.num_bins) = "
            f"{largest:.4g}."
        )


def _training_problems(config: ConfigDict) -> Iterator[str]:
    try:
        steps = augmentations.parse(config.finetune.augment)
    except ConfigError as error:
        yield f"finetune.augment: {error}"
    else:
        if config.finetune.batch_size == 1 and any(
            isinstance(x, augmentations.Mixing) for x in steps
        ):
            yield "finetune.augment mixes images, but finetune.batch_size is 1; use 2 or more."
    for section in ("pretrain", "finetune"):
        size, steps = config[section].batch_size, config[section].accumulation_steps
        if size > 0 and steps > 0 and size % steps:
            yield (
                f"{section}.accumulation_steps is {steps}; it must divide "
                f"{section}.batch_size={size}."
            )


def _evaluation_problems(config: ConfigDict) -> Iterator[str]:
    kinds, resized = config.evaluation.tta, config.evaluation.resize
    if unknown := [kind for kind in kinds if kind not in tta.KINDS]:
        known = ", ".join(map(repr, tta.KINDS))
        yield f"evaluation.tta names {unknown[0]!r}; it may name {known}."
    if "five_crop" in kinds and resized == config.data.image_size:
        yield (
            f"evaluation.tta names 'five_crop', but evaluation.resize={resized} leaves nothing to "
            f"crop; give more than data.image_size, such as {resized * 8 // 7}."
        )


def _mesh_problems(config: ConfigDict, num_devices: int) -> Iterator[str]:
    batch_sizes = microbatch_sizes(config)  # whose images are spread over the devices
    if min(batch_sizes) > 0:
        try:
            sharding.mesh_shape(num_devices, config.mesh.data, config.mesh.fsdp, batch_sizes)
        except hosts.DeviceError as error:
            yield f"mesh: {error}"
