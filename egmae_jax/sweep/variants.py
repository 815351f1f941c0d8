"""Variants of a sweep: a base config, and the fields that each variant changes."""

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
    changes: dict[str, Any]  # values by field, such as 'pretrain.epochs'
    config: ConfigDict  # base config with the changes

    @property
    def folder(self) -> str:
        """Name of the variant's folder inside the folder of the sweep."""
        return self.name.replace("/", "_")


class Sweep(NamedTuple):
    """A base config with variants of it."""

    variants: tuple[Variant, ...]  # in the order of their runs
    baseline: str  # name of the variant that the others are compared with


def base(words: str | None) -> ConfigDict:
    """Loads the recipe that a sweep varies; for `get_config` of a file in configs/sweeps.

    Args:
        words: name of the recipe and its options; 'busi,cpu' loads configs/busi.py:cpu.

    Raises:
        ConfigError: `words` is None or names no recipe, or the recipe has no pre-training.
    """
    name, _, rest = (words or "").partition(",")
    if name not in (known := config_files.names()):
        raise ConfigError(
            f"A sweep needs a recipe after the colon, such as configs/sweeps/epochs.py:busi,cpu; "
            f"{name!r} is none of {', '.join(known)}."
        )
    config = config_files.load(name, rest or None)
    if "mae" not in config.branches:
        raise ConfigError(f"configs/{name}.py has no branch 'mae', which a sweep needs.")
    return config


def attach(
    config: ConfigDict, changes: Mapping[str, Mapping[str, Any]], *, baseline: str
) -> ConfigDict:
    """Adds the variants of a sweep to a config; for `get_config` of a file in configs/sweeps.

    Args:
        config: base config of all variants, which is modified.
        changes: fields that each variant sets, {"500/30": {"pretrain.epochs": 500, ...}, ...}.
        baseline: name of the variant that the others are compared with.

    Returns:
        The config.
    """
    with config.unlocked():
        config.sweep = ConfigDict(
            {"changes": tuple((k, tuple(v.items())) for k, v in changes.items())}
        )
        config.sweep.baseline = baseline
    return config


def read(config: ConfigDict, overrides: Iterable[str] = ()) -> Sweep:
    """Reads the sweep that `attach` has added to a config.

    Args:
        config: config with a sweep.
        overrides: fields that are set on the command line; variants must not set them.

    Raises:
        ConfigError: the config has no sweep, a variant sets an overridden or unknown field, two
            variants are equal, or there is no baseline.
    """
    if "sweep" not in config:
        raise ConfigError(
            "--config is not a sweep but a single recipe; run it with main.py. Sweeps are in "
            "configs/sweeps, such as configs/sweeps/epochs.py:busi."
        )
    recipe = copy.deepcopy(config)  # keeps references between fields, which a variant may change
    with recipe.unlocked():
        del recipe["sweep"]
    variants = []
    for name, fields in config.sweep.changes:
        changed = copy.deepcopy(recipe)
        for field, value in fields:
            if field in overrides:
                raise ConfigError(
                    f"--config.{field} cannot be set: the variant {name!r} sets it to {value!r}."
                )
            if field not in flatten(recipe):
                raise ConfigError(
                    f"The variant {name!r} sets {field}, but there is no such field in the config."
                )
            changed.update_from_flattened_dict({field: value})
        variants.append(Variant(name, dict(fields), changed))
    _require_different(variants)
    if config.sweep.baseline not in [variant.name for variant in variants]:
        raise ConfigError(
            f"The sweep has no variant {config.sweep.baseline!r}, which is named as its baseline."
        )
    return Sweep(tuple(variants), config.sweep.baseline)


def _require_different(variants: list[Variant]) -> None:
    for one, other in itertools.combinations(variants, 2):
        if one.folder == other.folder or one.config.to_dict() == other.config.to_dict():
            raise ConfigError(f"The variants {one.name!r} and {other.name!r} are the same.")
