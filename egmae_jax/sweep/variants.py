"""The variants of a sweep: a base config, and the fields in which each of them differs."""

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.run import config_files
from egmae_jax.run.config import flatten


class Variant(NamedTuple):
    """One run of a sweep."""

    name: str
    changes: dict[str, Any]  # value by field, such as 'pretrain.epochs'
    config: ConfigDict  # with the changes

    @property
    def folder(self) -> str:
        """Name of the run's folder in that of the sweep."""
        return self.name.replace("/", "_")


class Sweep(NamedTuple):
    """Variants in the order in which they are run."""

    variants: tuple[Variant, ...]
    baseline: str  # name of the variant that the others are compared with


def base(words: str | None) -> ConfigDict:
    """The recipe that a sweep varies, for `get_config` of a file such as configs/sweeps/epochs.py.

    Args:
        words: a recipe and its own words: 'busi,cpu' is configs/busi.py:cpu. None and '' name none.

    Raises:
        ConfigError: there is no such recipe, or it pre-trains nothing.
    """
    name, _, rest = (words or "").partition(",")
    if name not in (known := config_files.names()):
        raise ConfigError(
            f"A sweep needs a recipe behind the colon, such as configs/sweeps/epochs.py:busi,cpu; "
            f"{name!r} is none of {', '.join(known)}."
        )
    config = config_files.load(name, rest or None)
    if "mae" not in config.branches:
        raise ConfigError(f"configs/{name}.py has no branch 'mae' to vary.")
    return config


def attach(
    config: ConfigDict, changes: Mapping[str, Mapping[str, Any]], *, baseline: str
) -> ConfigDict:
    """Makes a sweep of a config, for `get_config` of a file such as configs/sweeps/epochs.py.

    Args:
        config: the base config of all variants.
        changes: the fields that each variant sets, {"500/30": {"pretrain.epochs": 500, ...}, ...}.
        baseline: name of the variant that the others are compared with.
    """
    with config.unlocked():
        config.sweep = ConfigDict(
            {"changes": tuple((k, tuple(v.items())) for k, v in changes.items())}
        )
        config.sweep.baseline = baseline
    return config


def read(config: ConfigDict, overrides: Iterable[str] = ()) -> Sweep:
    """Reads the sweep that `attach` made.

    Args:
        config: a config with a sweep.
        overrides: fields that the command line sets, which no variant may set as well.

    Raises:
        ConfigError: the config has no sweep, or a variant of it cannot be.
    """
    if "sweep" not in config:
        raise ConfigError(
            "--config is no sweep, but a single recipe, which main.py runs. Sweeps are in "
            "configs/sweeps, such as configs/sweeps/epochs.py:busi."
        )
    recipe = copy.deepcopy(config)  # keeps fields that follow others, which a variant may set
    with recipe.unlocked():
        del recipe["sweep"]
    variants = []
    for name, fields in config.sweep.changes:
        changed = copy.deepcopy(recipe)
        for field, value in fields:
            if field in overrides:
                raise ConfigError(
                    f"--config.{field} cannot be set: the sweep sets it ({name!r}: {value!r})."
                )
            if field not in flatten(recipe):
                raise ConfigError(f"The variant {name!r} sets {field}, but there is no such field.")
            changed.update_from_flattened_dict({field: value})
        variants.append(Variant(name, dict(fields), changed))
    _require_different(variants)
    if config.sweep.baseline not in [variant.name for variant in variants]:
        raise ConfigError(f"The sweep has no variant {config.sweep.baseline!r}, its baseline.")
    return Sweep(tuple(variants), config.sweep.baseline)


def _require_different(variants: list[Variant]) -> None:
    for one, other in itertools.combinations(variants, 2):
        if one.folder == other.folder or one.config.to_dict() == other.config.to_dict():
            raise ConfigError(f"The variants {one.name!r} and {other.name!r} are the same.")
