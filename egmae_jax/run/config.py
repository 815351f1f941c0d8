"""A config as it is stored: config.json, and what may change between two runs on one workdir."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json

# Fields that change no number: where things lie, how often they are saved, how many at a time
# are evaluated. The data themselves are held to splits.json by the hashes of their files, which are
# read again when a size or time changes.
FREE_FIELDS = (
    "data.dir",
    "data.cache_dir",
    "checkpoint.save_seconds",
    "checkpoint.on_damage",  # of older versions
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
    "nonfinite.max_skipped": 0,
    "evaluation.report": True,
    "tensorboard.events": True,
    "tensorboard.panel_epochs": 100,
}


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
