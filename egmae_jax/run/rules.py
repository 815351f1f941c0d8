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

from egmae_jax import models
from egmae_jax.core import hosts, sharding
from egmae_jax.core.errors import ConfigError
from egmae_jax.data import datasets, images, samples, splits
from egmae_jax.method import corruption, entropy, fusion, layer_entropy
from egmae_jax.models.init import KERNEL_INITS
from egmae_jax.run import branches, default_config
from egmae_jax.run.config import flatten

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
    "fusion.kind": fusion.KINDS,
}


class _Range(NamedTuple):
    """A condition on values, and the fields that must satisfy it."""

    words: str  # completes the sentence "it must ..."
    holds: Callable[[Any], bool]
    fields: tuple[str, ...]


_SEEDS = ("seed", "data.split_seed")
_RANGES = (
    _Range(
        "be positive",
        lambda x: x > 0,
        (
            *("data.image_size", "data.store_size", "corruption.patch_size", "corruption.scale"),
            *("decoder.dim", "model.layer_scale", "rounds.count"),
            *("pretrain.epochs", "pretrain.batch_size", "pretrain.learning_rate"),
            *("finetune.epochs", "finetune.batch_size", "finetune.learning_rate"),
            "finetune.layer_decay",
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
            *("nonfinite.max_skipped", "tensorboard.panel_epochs"),
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
        ("finetune.drop_path_rate", "finetune.label_smoothing"),
    ),
    _Range("be at least 0 and below 2**31", lambda x: 0 <= x < 2**31, _SEEDS),
    _Range("be above 0 and at most 1", lambda x: 0 < x <= 1, ("finetune.trainable_share",)),
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
# A larger integer is probably a typo, and would otherwise fail late, such as out of memory.
_LARGEST = 10**6


def check(config: ConfigDict, num_devices: int, section: str = "") -> None:
    """Checks every field of a config and reports all invalid fields at once.

    Args:
        config: config with the fields of `run/default_config.py`.
        num_devices: number of devices on all hosts.
        section: prefix of the fields to check, such as 'data.'; '' checks all fields.

    Raises:
        ConfigError: fields are invalid; the message lists each with its value and valid values.
    """
    # Ranges can be checked only if all types are correct.
    problems = list(type_problems(config)) or [
        *_field_problems(config),
        *_data_problems(config),
        *_branch_problems(config),
        *_corruption_problems(config),
        *_mesh_problems(config, num_devices),
    ]
    problems = [problem for problem in problems if problem.startswith(section)]
    if problems:
        raise ConfigError("The config cannot be run:\n  " + "\n  ".join(problems))


def type_problems(config: ConfigDict | Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for each field that is missing, of the wrong type, or too large."""
    values = flatten(config)
    for field, default in flatten(default_config.get_config()).items():
        if field not in values:
            yield f"{field} is missing."
            continue
        value = values[field]
        is_tuple, kind = isinstance(default, list), _kind(default)
        if is_tuple != isinstance(value, list):
            expected = f"a tuple of {kind}" if is_tuple else kind
            yield f"{field} is {value!r}; it must be {expected}."
            continue
        for item in value if is_tuple else [value]:
            yield from _item_problems(field, item, kind, is_tuple=is_tuple)


def _kind(default: Any) -> str:
    """Describes the type of a field in words, from its default value."""
    if isinstance(default, list):
        return "two numbers" if default and isinstance(default[0], float) else "names"
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
    return kinds[type(default)]


def _item_problems(field: str, item: Any, kind: str, *, is_tuple: bool) -> Iterator[str]:
    if kind in ("text", "names"):
        fits = isinstance(item, str) and "\0" not in item
    elif kind == "True or False":
        fits = isinstance(item, bool)
    else:
        number = int if kind == "a whole number" else int | float
        fits = isinstance(item, number) and not isinstance(item, bool)
    if not fits:
        verb = "hold" if is_tuple else "be"
        yield f"{field} {'holds' if is_tuple else 'is'} {item!r}; it must {verb} {kind}."
    elif isinstance(item, float) and not math.isfinite(item):
        yield f"{field} is {item}; it must be finite."
    elif kind == "a whole number" and field not in _SEEDS and abs(item) > _LARGEST:
        yield f"{field} is {item}; it must be at most {_LARGEST}."


def _field_problems(config: ConfigDict) -> Iterator[str]:
    flat = flatten(config)
    for field, allowed in {**_CHOICES, "corruption.kind": corruption.kinds()}.items():
        if flat[field] not in allowed:
            yield f"{field} is {flat[field]!r}; it must be one of {', '.join(map(repr, allowed))}."
    for words, holds, fields in _RANGES:
        for field in fields:
            if not holds(flat[field]):
                yield f"{field} is {flat[field]}; it must {words}."


def _data_problems(config: ConfigDict) -> Iterator[str]:
    data, rounds = config.data, config.rounds
    try:
        datasets.get(data.name)
    except datasets.DataError as error:
        yield f"data.name: {error}"
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
    except (re.error, RecursionError, OverflowError) as error:
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
        models.family(config.model.name)
        field = "branches"
        chosen = branches.from_config(config)
        kinds = [models.family(branch.model_name) for branch in chosen]
        networks = [models.create(branch.model_name, num_classes=2) for branch in chosen]
    except ConfigError as error:
        yield f"{field}: {error}"
        return
    if len(networks) == 1 and config.fusion.kind in fusion.KINDS[1:]:
        yield f"fusion.kind is {config.fusion.kind!r}, but there is only one branch; use 'mean'."
    if config.model.rematerialize and "convnext" not in kinds:
        yield "model.rematerialize is True, but no branch is a ConvNeXt."
    pretrains = any(branch.is_mae for branch in chosen)
    yield from _side_problems(config, networks, config.corruption.patch_size if pretrains else 1)


def _side_problems(
    config: ConfigDict, networks: Iterable[models.Model], patch_size: int
) -> Iterator[str]:
    """Checks data.image_size against the strides and minimum sizes of the networks, and patches."""
    side = config.data.image_size
    demands = {f"ConvNeXt's stride {n.stride}": n.stride for n in networks if n.needs_multiple}
    demands |= {f"corruption.patch_size={patch_size}": patch_size} if patch_size > 1 else {}
    divisor = math.lcm(*demands.values())
    if side % divisor:
        nearest = max(1, round(side / divisor)) * divisor
        yield (
            f"data.image_size is {side}; {' and '.join(demands)} must divide it; the nearest is "
            f"{nearest}."
        )
    smallest = max((network.min_size for network in networks), default=1)
    if side < smallest:
        yield f"data.image_size is {side}; the networks need at least {smallest}."


def _corruption_problems(config: ConfigDict) -> Iterator[str]:
    settings = config.corruption
    if not config.pretrain.splits or set(config.pretrain.splits) - set(splits.PARTS):
        yield (
            f"pretrain.splits is {tuple(config.pretrain.splits)}; it must name one or more of "
            f"{', '.join(splits.PARTS)}."
        )
    largest = settings.scale * math.log(max(config.entropy.num_bins, 2))
    is_noise = settings.kind in ("entropy_noise", "uniform_noise")
    if is_noise and settings.threshold >= largest > 0:
        yield (
            f"corruption.threshold is {settings.threshold}: no patch would be masked, because the "
            "noise variance is at most corruption.scale * ln(entropy.num_bins) = "
            f"{largest:.4g}."
        )


def _mesh_problems(config: ConfigDict, num_devices: int) -> Iterator[str]:
    batch_sizes = (config.pretrain.batch_size, config.finetune.batch_size)
    if min(batch_sizes) > 0:
        try:
            sharding.mesh_shape(num_devices, config.mesh.data, config.mesh.fsdp, batch_sizes)
        except hosts.DeviceError as error:
            yield f"mesh: {error}"
