"""A config as it is stored: config.json, and what may change between two runs on one workdir."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json

# Fields that change no number: where things lie, how often they are saved, how many images are
# evaluated at a time. The images themselves are held to splits.json by the hashes of their files.
FREE_FIELDS = (
    "data.dir",
    "data.cache_dir",
    "checkpoint.save_seconds",
    "checkpoint.on_damage",  # a field of the version before
    "nonfinite.max_skipped",  # changes nothing where all steps are finite
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
# Fields of the version before, and the constants that took their place.
_REMOVED = {"pretrain.crop_ratio": [3 / 4, 4 / 3], "finetune.calibration_images": 256}


def load(path: Path) -> ConfigDict:
    """The config of a config.json.

    Raises:
        DamagedFileError: the file holds none.
    """
    content = read_json(path, RESTORE)
    try:
        return ConfigDict(content)
    except (KeyError, ValueError, TypeError) as error:  # a name with a dot, for one
        raise DamagedFileError(path, error, RESTORE) from None


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config by their dotted names, such as {'data.image_size': 224}."""
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
        saved: content of config.json.
        config: config of this run.

    Raises:
        ConfigError: names every field that differs, with both values.
    """
    before = {k: v for k, v in flatten(saved).items() if k not in _REMOVED or v != _REMOVED[k]}
    if changes := differences(before, flatten(config), free=FREE_FIELDS):
        raise ConfigError(
            "The workdir holds a run with another config; going on would mix the two. Use the same "
            "values or another --workdir.\n  " + "\n  ".join(changes)
        )


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Container[str] = ()
) -> list[str]:
    """Both values of each name that differs between the workdir and this run.

    Args:
        before: values by name, as the workdir has them.
        now: values of this run.
        free: names that may differ.
    """

    def text(values: Mapping[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "not set"

    return [
        f"{name}: {text(before, name)} in the workdir, {text(now, name)} now"
        for name in sorted(before.keys() | now.keys())
        if name not in free and before.get(name) != now.get(name)
    ]
