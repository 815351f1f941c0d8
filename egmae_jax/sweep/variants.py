"""Variants of a sweep: a base config, and the fields that each variant changes."""

import copy
import itertools
import re
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
    baseline: str  # name of the variant, or of the line, that the others are compared with
    # Field that scores are drawn against, as one line for each recipe. Names of variants are then
    # '<line>/<value>', such as 'mae/0.1'. Empty: the variants are compared one by one.
    axis: str = ""
    # Whether names of variants are '<variant>/<setting>', and the setting of each is chosen on
    # validation images before the variants are compared. The baseline is then '<variant>'.
    tuned: bool = False

    def baseline_of(self, name: str) -> str:
        """Returns the name of the variant that a variant is compared with."""
        return f"{self.baseline}/{name.rpartition('/')[2]}" if self.axis else self.baseline


def base(words: str | None, *, pretrains: bool = True) -> ConfigDict:
    """Loads the recipe that a sweep varies; for `get_config` of a file in configs/sweeps.

    Args:
        words: name of the recipe and its options; 'busi,cpu' loads configs/busi.py:cpu.
        pretrains: whether the sweep needs a recipe with pre-training.

    Raises:
        ConfigError: `words` is None or names no recipe, or the recipe has no pre-training although
            `pretrains` is set.
    """
    name, _, rest = (words or "").partition(",")
    if name not in (known := config_files.names()):
        raise ConfigError(
            f"A sweep needs a recipe after the colon, such as configs/sweeps/epochs.py:busi,cpu; "
            f"{name!r} is none of {', '.join(known)}."
        )
    config = config_files.load(name, rest or None)
    if pretrains and "mae" not in config.branches:
        raise ConfigError(f"configs/{name}.py has no branch 'mae', which a sweep needs.")
    return config


def attach(
    config: ConfigDict,
    changes: Mapping[str, Mapping[str, Any]],
    *,
    baseline: str,
    axis: str = "",
    tuned: bool = False,
) -> ConfigDict:
    """Adds the variants of a sweep to a config; for `get_config` of a file in configs/sweeps.

    Args:
        config: base config of all variants, which is modified.
        changes: fields that each variant sets, {"500/30": {"pretrain.epochs": 500, ...}, ...}. In
            text, '{model.name}' stands for the value of that field, which the command line may set.
        baseline: name of the variant that the others are compared with; with an axis, of a line.
        axis: field that scores are drawn against. Each variant must set it, and is named
            '<line>/<value>'.
        tuned: whether each variant is run with several settings, named '<variant>/<setting>', of
            which the best on validation images counts. Not with an axis.

    Returns:
        The config.
    """
    with config.unlocked():
        config.sweep = ConfigDict(
            {"changes": tuple((k, tuple(v.items())) for k, v in changes.items())}
        )
        config.sweep.baseline = baseline
        config.sweep.axis = axis
        config.sweep.tuned = tuned
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
        changes = {field: _fill(value, recipe) for field, value in fields}
        changed.update_from_flattened_dict(changes)
        variants.append(Variant(name, changes, changed))
    _require_different(variants)
    sweep = Sweep(tuple(variants), config.sweep.baseline, config.sweep.axis, config.sweep.tuned)
    names = [line(x.name) if sweep.tuned else x.name for x in variants]
    for variant in variants:
        if sweep.axis and sweep.axis not in variant.changes:
            raise ConfigError(f"The variant {variant.name!r} does not set the axis {sweep.axis}.")
        if (baseline := sweep.baseline_of(variant.name)) not in names:
            raise ConfigError(
                f"The sweep has no variant {baseline!r}, which is named as its baseline."
            )
    return sweep


def _fill(value: Any, recipe: ConfigDict) -> Any:
    """Replaces names of fields in braces, in a text or a tuple of texts, by their values."""
    if isinstance(value, tuple):
        return tuple(_fill(x, recipe) for x in value)
    if not isinstance(value, str):
        return value
    return re.sub(r"\{([\w.]+)\}", lambda field: str(flatten(recipe)[field[1]]), value)


def line(name: str) -> str:
    """Returns the part of a variant's name before its value or setting."""
    return name.rpartition("/")[0]


def _require_different(variants: list[Variant]) -> None:
    for one, other in itertools.combinations(variants, 2):
        if one.folder == other.folder or one.config.to_dict() == other.config.to_dict():
            raise ConfigError(f"The variants {one.name!r} and {other.name!r} are the same.")
