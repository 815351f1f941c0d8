"""Checks of a config before any work, and what may change between two runs on one workdir."""

import copy
import difflib
import math
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from egmae_jax import models
from egmae_jax.core import console, sharding
from egmae_jax.core.errors import ConfigError, UserError
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json
from egmae_jax.data import datasets, images, samples, splits
from egmae_jax.method import corruption, fusion, layer_entropy
from egmae_jax.models.init import KERNEL_INITS
from egmae_jax.run import branches
from egmae_jax.training import checkpoint

# Fields that change no number: where things lie, how often they are saved, how many at a time
# are evaluated. The data themselves are held to splits.json by the hashes of their files, which are
# read again when a size or time changes.
FREE_FIELDS = (
    "data.dir",
    "data.cache_dir",
    "checkpoint.save_seconds",
    "checkpoint.on_damage",
    "nonfinite.max_skipped",  # of none where all steps are finite; those left out are told
    "mesh.data",
    "mesh.fsdp",
    "data.feeding",
    "data.resident_gigabytes",
    "data.host_gigabytes",
    "evaluation.batch_size",
    "evaluation.report",
    "tensorboard.events",
    "tensorboard.panel_epochs",
)


# Fields that changed no number when they were added: what a config.json without them means.
_ADDED: dict[str, Any] = {
    "data.intensity_range": "type",
    "checkpoint.on_damage": "previous",
    "nonfinite.max_skipped": 0,
    "evaluation.report": True,
    "tensorboard.events": True,
    "tensorboard.panel_epochs": 100,
}

# What every field is of; a test holds this to run/default_config.py.
_TYPES: dict[str, tuple[str, ...]] = {
    "text": (
        *("data.name", "data.dir", "data.cache_dir", "data.group_pattern", "data.on_error"),
        *(
            "data.color",
            "data.intensity_range",
            "data.feeding",
            "data.resize",
            "data.protocol",
            "data.on_conflict",
        ),
        *("model.name", "model.dtype", "model.kernel_init", "imagenet.weights", "imagenet.model"),
        *("entropy.color", "corruption.kind", "finetune.trainable", "fusion.kind", "rounds.kind"),
        "checkpoint.on_damage",
    ),
    "a whole number": (
        *("seed", "data.image_size", "data.store_size", "data.split_seed"),
        *("entropy.num_bins", "corruption.patch_size", "decoder.dim", "decoder.depth"),
        *("pretrain.epochs", "pretrain.batch_size", "pretrain.warmup_epochs"),
        *("finetune.epochs", "finetune.batch_size", "finetune.warmup_epochs", "finetune.resize"),
        *("finetune.calibration_images", "rounds.count", "mesh.data", "mesh.fsdp"),
        *("nonfinite.max_skipped", "tensorboard.panel_epochs"),
        *("evaluation.resize", "evaluation.batch_size", "evaluation.bootstrap_resamples"),
    ),
    "a number": (
        *("data.resident_gigabytes", "data.host_gigabytes", "data.near_duplicate_threshold"),
        *("data.test_share", "data.validation_share", "model.layer_scale"),
        *("corruption.scale", "corruption.threshold", "corruption.mask_ratio"),
        *("pretrain.learning_rate", "pretrain.weight_decay"),
        *("finetune.learning_rate", "finetune.weight_decay", "finetune.layer_decay"),
        *("finetune.drop_path_rate", "finetune.label_smoothing", "finetune.trainable_share"),
        *("finetune.input_noise", "checkpoint.save_seconds"),
    ),
    "True or False": (
        *("data.drop_leaks", "data.deduplicate", "model.rematerialize"),
        *("evaluation.report", "tensorboard.events"),
    ),
    "names": ("data.classes", "branches", "pretrain.splits"),
    "two numbers": (
        *("pretrain.betas", "pretrain.crop_scale", "pretrain.crop_ratio", "finetune.betas"),
    ),
}
_LARGEST = 1e15  # of whole numbers: more is a slip, and fits into no array
# More than this fills the memory or the life of the sun, long after the run has begun.
_MOST = {
    "data.image_size": 8192,
    "data.store_size": 16384,
    "decoder.dim": 65536,
    "decoder.depth": 1000,
    "pretrain.epochs": 10**6,
    "pretrain.batch_size": 65536,
    "finetune.epochs": 10**6,
    "finetune.batch_size": 65536,
    "finetune.resize": 16384,
    "rounds.count": 1000,
    "evaluation.resize": 16384,
    "evaluation.batch_size": 65536,
    "evaluation.bootstrap_resamples": 10**5,
}


def check(config: ConfigDict, num_devices: int, section: str = "") -> None:
    """Checks every field that could stop a run later, and names all that are wrong at once.

    Args:
        config: of `run/default_config.py`'s fields.
        num_devices: of all hosts.
        section: only its fields are told, such as 'data.'; all if empty.

    Raises:
        ConfigError: see its message.
    """
    # Comparing needs numbers: where some are none, only that is told.
    problems = list(type_problems(config)) or list(_problems(config, num_devices))
    problems = [problem for problem in problems if problem.startswith(section)]
    if problems:
        raise ConfigError("The config cannot be run:\n  " + "\n  ".join(problems))


def type_problems(
    config: ConfigDict | Mapping[str, Any], fields: Container[str] | None = None
) -> Iterator[str]:
    """Says which fields are missing, of another type than they must be, or absurdly large.

    Args:
        config: whatever a file holds.
        fields: those that must be right; all if None.
    """
    flat = flatten(config)
    for kind, of_kind in _TYPES.items():
        for field in of_kind:
            if fields is not None and field not in fields:
                continue
            if field not in flat:
                yield f"{field} is missing."
                continue
            value = flat[field]
            several = kind in ("names", "two numbers")
            if several != isinstance(value, list):
                wanted = f"a tuple of {kind}" if several else kind
                yield f"{field} is {value!r}; it must be {wanted}."
                continue
            for item in value if several else [value]:
                if not _is_of(item, kind):
                    verb = "hold" if several else "be"
                    yield f"{field} {'holds' if several else 'is'} {item!r}; it must {verb} {kind}."
                elif isinstance(item, float) and not math.isfinite(item):
                    yield f"{field} is {item}; it must be finite."
                elif isinstance(item, int) and abs(item) > _LARGEST:
                    yield f"{field} is more than {_LARGEST:g} or less than its negative."
                elif field in _MOST and item > _MOST[field]:
                    yield f"{field} is {item}; it can be at most {_MOST[field]}."


def _is_of(value: Any, kind: str) -> bool:
    if kind in ("text", "names"):
        return isinstance(value, str) and "\0" not in value
    if kind == "True or False":
        return isinstance(value, bool)
    number = int if kind == "a whole number" else int | float
    return isinstance(value, number) and not isinstance(value, bool)


def _problems(config: ConfigDict, num_devices: int) -> Iterator[str]:
    choices = {
        "data.on_error": ("raise", "skip"),
        "data.color": images.COLORS,
        "data.intensity_range": samples.RULES,
        "data.feeding": ("auto", "resident", "stream"),
        "data.on_conflict": ("keep", "drop"),
        "data.resize": images.RESIZE_MODES,
        "data.protocol": splits.PROTOCOLS,
        "model.dtype": ("float32", "bfloat16"),
        "entropy.color": corruption.COLORS,
        "corruption.kind": corruption.KINDS,
        "model.kernel_init": KERNEL_INITS,
        "rounds.kind": ("seeds", "folds"),
        "finetune.trainable": layer_entropy.MODES,
        "fusion.kind": fusion.KINDS,
        "checkpoint.on_damage": checkpoint.ON_DAMAGE,
    }
    flat = flatten(config)
    for field, allowed in choices.items():
        if flat[field] not in allowed:
            yield f"{field} is {flat[field]!r}; it can be {', '.join(map(repr, allowed))}."
    try:
        datasets.get(config.data.name)
    except datasets.DataError as error:
        yield f"data.name: {error}"
    mae, kinds, networks = False, [], []  # of the branches: all that will see the images
    try:
        field = "model.name"
        models.family(config.model.name)
        field = "branches"
        chosen = branches.of(config)
        kinds = [models.family(branch.model_name) for branch in chosen]
        networks = [models.create(branch.model_name, num_classes=2) for branch in chosen]
        mae = any(branch.is_mae for branch in chosen)
    except ConfigError as error:
        yield f"{field}: {error}"
    if len(networks) == 1 and config.fusion.kind in fusion.KINDS[1:]:
        yield f"fusion.kind is {config.fusion.kind!r}, but there is only one branch."
    if config.model.rematerialize and kinds and "convnext" not in kinds:
        yield "model.rematerialize is True, but no branch is a ConvNeXt."
    if not config.data.dir:
        yield "data.dir is empty; give the folder of the images: --config.data.dir=<folder>."
    for field in ("data.dir", "data.cache_dir"):
        try:
            Path(flat[field]).expanduser()
        except RuntimeError:
            yield f"{field} is {flat[field]!r}, whose user has no home folder."

    positive = (
        "data.image_size",
        "data.store_size",
        "corruption.patch_size",
        "corruption.scale",
        "decoder.dim",
        "model.layer_scale",
        "pretrain.epochs",
        "pretrain.batch_size",
        "pretrain.learning_rate",
        "finetune.epochs",
        "finetune.batch_size",
        "finetune.learning_rate",
        "finetune.layer_decay",
        "finetune.calibration_images",
        "rounds.count",
        "evaluation.batch_size",
        "evaluation.bootstrap_resamples",
    )
    for field in positive:
        if not flat[field] > 0:
            yield f"{field} is {flat[field]}; it must be positive."
    not_negative = (
        "seed",
        "data.split_seed",
        "corruption.threshold",
        "decoder.depth",
        "pretrain.warmup_epochs",
        "pretrain.weight_decay",
        "finetune.warmup_epochs",
        "finetune.weight_decay",
        "finetune.input_noise",
        "checkpoint.save_seconds",
        "nonfinite.max_skipped",
        "tensorboard.panel_epochs",
    )
    for field in not_negative:
        if flat[field] < 0:
            yield f"{field} is {flat[field]}; it must not be negative."
    for field in ("data.resident_gigabytes", "data.host_gigabytes"):
        if flat[field] < 0 and flat[field] != -1:
            yield f"{field} is {flat[field]}; it must not be negative, but for -1: what there is."
    below_one = (
        "data.test_share",
        "data.validation_share",
        "corruption.mask_ratio",
        "data.near_duplicate_threshold",
    )
    for field in below_one:
        if not 0 < flat[field] < 1:
            yield f"{field} is {flat[field]}; it must lie between 0 and 1."
    for field in ("finetune.drop_path_rate", "finetune.label_smoothing"):
        if not 0 <= flat[field] < 1:
            yield f"{field} is {flat[field]}; it must be at least 0 and below 1."
    for field in ("pretrain.betas", "finetune.betas"):
        betas = flat[field]
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            yield f"{field} is {betas}; it must be two numbers, each at least 0 and below 1."
    for field in ("pretrain.crop_scale", "pretrain.crop_ratio"):
        bounds = flat[field]
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            yield f"{field} is {bounds}; it must be (lowest, highest), both positive."
    if len(config.pretrain.crop_scale) == 2 and config.pretrain.crop_scale[1] > 1:
        yield f"pretrain.crop_scale is {config.pretrain.crop_scale}; no crop exceeds its image (1)."
    if not 0 < config.finetune.trainable_share <= 1:
        yield (
            f"finetune.trainable_share is {config.finetune.trainable_share}; it must be above 0 "
            "and at most 1."
        )
    if config.data.test_share + config.data.validation_share >= 1:
        yield "data.test_share and data.validation_share leave nothing to train on."
    if not config.pretrain.splits or set(config.pretrain.splits) - set(splits.SPLITS):
        yield (
            f"pretrain.splits is {tuple(config.pretrain.splits)}; it holds one or more of "
            f"{', '.join(splits.SPLITS)}."
        )
    if config.rounds.kind == "folds" and config.data.protocol == "official":
        yield "rounds.kind is 'folds', which data.protocol='official' excludes; use 'grouped'."
    try:
        if config.data.group_pattern and not re.compile(config.data.group_pattern).groups:
            yield f"data.group_pattern is {config.data.group_pattern!r}; it has no (group)."
    except (re.error, RecursionError, OverflowError) as error:
        yield f"data.group_pattern is {config.data.group_pattern!r}: {error}."
    if len(config.data.classes) == 1:
        yield f"data.classes is {tuple(config.data.classes)}; it must name two or more, or be ()."
    folds = config.rounds.count if config.rounds.kind == "folds" else None
    if folds is not None and folds < 3:
        yield f"rounds.count is {folds}; rounds.kind='folds' needs at least 3."
    elif folds is not None and config.data.validation_share + 1 / folds >= 1:
        yield "data.validation_share and a fold for testing leave nothing to train on."
    if not 1 <= config.entropy.num_bins <= 256 or 256 % config.entropy.num_bins:
        yield f"entropy.num_bins is {config.entropy.num_bins}; it must be a divisor of 256."

    side = config.data.image_size
    noise = config.corruption.kind in ("entropy_noise", "uniform_noise")
    patches = (side // max(config.corruption.patch_size, 1)) ** 2
    most = config.corruption.scale * math.log(max(config.entropy.num_bins, 2))
    if config.entropy.num_bins == 1:
        yield "entropy.num_bins is 1: every entropy is 0, so it guides nothing."
    elif noise and config.corruption.threshold >= most > 0:
        yield (
            f"corruption.threshold is {config.corruption.threshold}: no patch would be masked, as "
            "no noise variance is greater than corruption.scale * ln(entropy.num_bins) = "
            f"{most:.4g}."
        )
    if not noise and round(config.corruption.mask_ratio * patches) < 1:
        yield f"corruption.mask_ratio is {config.corruption.mask_ratio}: no patch of {patches}."
    patch = config.corruption.patch_size
    demands = {f"ConvNeXt's stride {n.stride}": n.stride for n in networks if n.needs_multiple}
    demands |= {f"corruption.patch_size={patch}": max(patch, 1)} if mae else {}
    divisor = math.lcm(*demands.values())
    if side % divisor:
        nearest = max(1, round(side / divisor)) * divisor
        yield (
            f"data.image_size is {side}; {' and '.join(demands)} "
            f"must{' both' * (len(demands) > 1)} divide it; the nearest is {nearest}."
        )
    least = max((network.min_size for network in networks), default=1)
    if side < least:
        yield f"data.image_size is {side}; the networks need at least {least}."
    if config.finetune.resize < side:
        yield (
            f"finetune.resize is {config.finetune.resize}, smaller than data.image_size={side}, "
            "the crop taken from it."
        )
    if config.evaluation.resize < side:
        yield (
            f"evaluation.resize is {config.evaluation.resize}, smaller than "
            f"data.image_size={side}, the crop taken from it."
        )
    if config.data.store_size < side:
        yield f"data.store_size is {config.data.store_size}, smaller than data.image_size={side}."
    for field, last in (
        ("seed", config.seed + config.rounds.count),
        ("data.split_seed", config.data.split_seed),
    ):
        if last >= 2**32:
            yield f"{field} is {flat[field]}; it must be below 2**32."
    batch_sizes = (config.pretrain.batch_size, config.finetune.batch_size)
    if min(batch_sizes) > 0:
        try:
            sharding.mesh_shape(num_devices, config.mesh.data, config.mesh.fsdp, batch_sizes)
        except sharding.DeviceError as error:
            yield f"mesh: {error}"


def load(path: Path) -> ConfigDict:
    """The config of a config.json, also of an older version.

    Raises:
        DamagedFileError: it holds none.
    """
    content = _completed(read_json(path, RESTORE))
    try:
        return ConfigDict(content)
    except (KeyError, ValueError, TypeError) as error:  # a name with a dot, for one
        raise DamagedFileError(path, error, RESTORE) from None


def _completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the fields that were added since it was written, as it means them."""
    content, added = copy.deepcopy(dict(saved)), dict(_ADDED)
    if isinstance(data := content.get("data"), dict) and "image_size" in data:
        added["evaluation.resize"] = data["image_size"]
    for field, value in added.items():
        section, name = field.split(".")
        if isinstance(content.setdefault(section, {}), dict):
            content[section].setdefault(name, value)
    return content


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'data.image_size': 224, ...}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def require_same(saved: Mapping[str, Any], config: ConfigDict) -> None:
    """Refuses to go on with another config than the workdir's, but for FREE_FIELDS.

    Args:
        saved: the content of config.json.
        config: of this run.

    Raises:
        ConfigError: names every field that differs, with both values.
    """
    before, now = flatten(_completed(saved)), flatten(config)
    changes = [
        f"{field}: {before.get(field, 'absent')!r} in the workdir, {now.get(field, 'absent')!r} now"
        for field in sorted(before.keys() | now.keys())
        if field not in FREE_FIELDS and before.get(field) != now.get(field)
    ]
    if changes:
        raise ConfigError(
            "The workdir holds a run with another config; going on would mix the two. Use the same "
            "values or another --workdir.\n  " + "\n  ".join(changes)
        )


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags of a command that has --config, with a sentence for what is wrong in them.

    Returns:
        The arguments that are no flags.
    """
    flag: Any = flags.FLAGS["config"]
    try:
        rest = flags.FLAGS(argv)
        if flag.value is not None:
            flag.value.to_dict()  # a file that is missing is only noticed on use
        return rest
    except UserError as error:  # of a preset, where the config file says so
        console.fail(str(error))
    except flags.Error as error:
        text = str(error).strip()
        if "get_config() takes 0 positional arguments" in text:
            console.fail(f"The config file {_config_file(argv)} takes no words behind a colon.")
        if "Error whilst parsing config file" in text:  # it raised what is no error of the user's
            raise
        console.fail(text.splitlines()[-1])
    except OSError:
        path = _config_file(argv)
        if os.path.isfile(path) and os.access(path, os.R_OK):
            raise  # what the file itself opens
        console.fail(f"There is no config file {path} that can be read.")
    except (AttributeError, KeyError, TypeError, OverflowError):
        from egmae_jax.run import default_config

        explanation = explain_unknown_field(argv, default_config.get_config())
        if explanation is None:
            raise
        console.fail(explanation)


def _config_file(argv: Sequence[str]) -> str:
    """What --config names, without the words behind the colon; the last where it is given twice."""
    given = ""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(=(.*))?", argument):
            given = match[2] if match[1] else following
    return given.partition(":")[0]


def explain_unknown_field(argv: list[str], config: ConfigDict) -> str | None:
    """Says which of the flags --config.a.b=... names no field, and what the nearest field is.

    Returns:
        A sentence; None where every flag names a field.
    """
    fields = list(flatten(config))
    for argument in argv:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] not in fields:
            nearest = difflib.get_close_matches(match[1], fields, n=1, cutoff=0.0)[0]
            return f"There is no config field {match[1]!r}. Did you mean {nearest!r}?"
    return None
