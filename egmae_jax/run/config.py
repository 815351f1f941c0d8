"""Reads config.json and compares configs; defines which fields may change on resume."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json

# Fields that may change on resume because they do not affect results. The images may be moved too:
# splits.json identifies them by their hashes.
FREE_FIELDS = (
    "data.dir",
    "data.cache_dir",
    "checkpoint.save_seconds",
    "checkpoint.on_damage",  # removed field of the previous version
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


def load(path: Path) -> ConfigDict:
    """Reads the config from config.json.

    Raises:
        DamagedFileError: the file is missing or does not hold a config.
    """
    content = read_json(path, RESTORE)
    try:
        return ConfigDict(content)
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


def require_same(saved: Mapping[str, Any], config: ConfigDict) -> None:
    """Checks that a config equals the saved config of the workdir, except for FREE_FIELDS.

    Args:
        saved: content of config.json.
        config: config of this run.

    Raises:
        ConfigError: names every field that differs, with both values.
    """
    before = {k: v for k, v in flatten(saved).items() if k not in _REMOVED or v != _REMOVED[k]}
    if changes := differences(before, flatten(config), free=FREE_FIELDS):
        raise ConfigError(
            "The workdir holds a run with another config, with which this run cannot resume. Use "
            "the same values or another --workdir.\n  " + "\n  ".join(changes)
        )


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
