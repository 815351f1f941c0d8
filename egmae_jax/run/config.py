"""Checks of a config before any work, and what may change between two runs on one workdir."""

import copy
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from egmae_jax.core import console
from egmae_jax.core.errors import ConfigError, UserError
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json

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
