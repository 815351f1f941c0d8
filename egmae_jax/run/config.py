"""Reads config.json and compares configs; defines which fields may change on resume."""

import shlex
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json

# Fields that may change on resume because they do not affect results. The images may be moved too:
# splits.json identifies them by their hashes.
FREE_FIELDS = (
    "data.dir",
    "data.cache_dir",
    "data.title",
    "checkpoint.save_seconds",
    "checkpoint.on_damage",  # removed field of the previous version
    "pretrain.probe_epochs",
    "nonfinite.max_skipped",  # has no effect while all steps are finite
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
# Removed fields of the previous version, and the constants that replace them.
_REMOVED = {"pretrain.crop_ratio": [3 / 4, 4 / 3], "finetune.calibration_images": 256}
# Fields that earlier versions did not have, and the values with which a run is as theirs.
_ADDED = {
    "data.title": "",
    "evaluation.tta": [],
    "finetune.accumulation_steps": 1,
    "finetune.augment": [],
    "finetune.class_weights": "none",
    "finetune.clip_norm": 0.0,
    "finetune.ema_decay": 0.0,
    "finetune.focal_gamma": 2.0,
    "finetune.label_share": 1.0,
    "finetune.logit_adjustment_tau": 1.0,
    "finetune.loss": "cross_entropy",
    "finetune.patience": 0,
    "finetune.sampling": "plain",
    "finetune.select": "auc",
    "pretrain.accumulation_steps": 1,
    "pretrain.clip_norm": 0.0,
    "pretrain.drop_leaks": True,
    "pretrain.probe_epochs": 0,
    "pretrain.unlabelled": [],
    "pretrain.weights": "",
}


def load_config(path: Path) -> ConfigDict:
    """Reads the config from config.json; fields that an earlier version did not have are added.

    Raises:
        DamagedFileError: the file is missing or does not hold a config.
    """
    content = read_json(path, RESTORE)
    try:
        config = ConfigDict(content)
        missing = _ADDED.keys() - flatten(config).keys()
        config.update_from_flattened_dict({name: _ADDED[name] for name in missing})
        return config
    except (KeyError, ValueError, TypeError) as error:  # such as a field name with a dot
        raise DamagedFileError(path, error, RESTORE) from None


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns all fields by dotted name, such as {'data.image_size': 224}; tuples become lists."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def require_same(
    saved: Mapping[str, Any], config: ConfigDict, pretrained_in: Path | None = None
) -> None:
    """Checks that a config equals the saved config of the workdir, except for FREE_FIELDS.

    Args:
        saved: content of config.json.
        config: config of this run.
        pretrained_in: the workdir, if its pre-training is complete, for the advice in the message.

    Raises:
        ConfigError: names every field that differs, with both values.
    """
    before = _ADDED | flatten(saved)
    before = {k: v for k, v in before.items() if k not in _REMOVED or v != _REMOVED[k]}
    if changes := differences(before, flatten(config), free=FREE_FIELDS):
        raise ConfigError(
            "The workdir holds a run with another config, with which this run cannot resume. Use "
            "the same values or another --workdir."
            + _advice({change.partition(":")[0] for change in changes}, pretrained_in)
            + "\n  "
            + "\n  ".join(changes)
        )


def _advice(changed: set[str], pretrained_in: Path | None) -> str:
    """Returns how another run can use this one's pre-training, '' if the changes exclude it."""
    if pretrained_in is None:
        return ""
    weights = f"--config.pretrain.weights={shlex.quote(str(pretrained_in))}"
    if all(name.startswith("finetune.") for name in changed):
        return (
            " To fine-tune anew from its pre-training, add these flags and give another --workdir: "
            f"{weights} --config.pretrain.epochs=0"
        )
    if changed == {"pretrain.epochs"}:
        return (
            " The learning rate follows the number of epochs, so a run cannot be extended. To "
            "pre-train for more epochs from its result, with a schedule of their own, add this "
            f"flag and give another --workdir: {weights}"
        )
    return ""


def split_indices(config: ConfigDict | FrozenConfigDict) -> range:
    """Returns the indices of a run's splits, each with its own pre-training.

    With rounds.kind='folds' there is one for each round; otherwise only split 0, for all rounds.
    """
    return range(config.rounds.count if config.rounds.kind == "folds" else 1)


def microbatch_sizes(config: ConfigDict | FrozenConfigDict) -> tuple[int, int]:
    """Returns how many images are differentiated at once, in pre-training and in fine-tuning."""
    pretrain, finetune = (
        section.batch_size // max(section.accumulation_steps, 1)
        for section in (config.pretrain, config.finetune)
    )
    return pretrain, finetune


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Container[str] = ()
) -> list[str]:
    """Describes each value that differs, such as 'seed: 0 in the workdir, 1 now'.

    Args:
        before: values of the workdir, by name.
        now: values of this run, by name.
        free: names of values that may differ.
    """

    def text(values: Mapping[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "not set"

    return [
        f"{name}: {text(before, name)} in the workdir, {text(now, name)} now"
        for name in sorted(before.keys() | now.keys())
        if name not in free and before.get(name) != now.get(name)
    ]
