"""What a sweep runs: a base config, and by name the fields in which each variant differs."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from egmae_jax.run.config import ConfigError, flatten


class Variant(NamedTuple):
    """One run of a sweep."""

    name: str
    changes: dict[str, Any]  # fields as 'pretrain.epochs'
    config: ConfigDict

    @property
    def folder(self) -> str:
        """Of the run, in the sweep's."""
        return self.name.replace("/", "_")


class Sweep(NamedTuple):
    """The runs, in the order they are run."""

    variants: tuple[Variant, ...]
    baseline: str  # the others are compared with it


def attach(
    config: ConfigDict, changes: Mapping[str, Mapping[str, Any]], *, baseline: str
) -> ConfigDict:
    """Makes a sweep of a config, for `get_config` of a file such as configs/sweeps/epochs.py.

    Args:
        config: that all variants begin with.
        changes: by variant the fields it sets, {"500/30": {"pretrain.epochs": 500, ...}, ...}.
        baseline: the variant that the others are compared with.
    """
    with config.unlocked():
        config.sweep = ConfigDict(
            {"changes": tuple((k, tuple(v.items())) for k, v in changes.items())}
        )
        config.sweep.baseline = baseline
    return config


def read(config: ConfigDict, given: Iterable[str] = ()) -> Sweep:
    """The sweep that `attach` has made.

    Args:
        config: with it.
        given: fields set on the command line, which no variant may set as well.

    Raises:
        ConfigError: there is none, or two variants are one.
    """
    if "sweep" not in config:
        raise ConfigError(
            "--config is no sweep, but a single recipe, which main.py runs. Sweeps are in "
            "configs/sweeps, such as configs/sweeps/epochs.py:busi."
        )
    base = copy.deepcopy(config)  # with the fields that follow another, which a variant may set
    with base.unlocked():
        del base["sweep"]
    variants = []
    for name, fields in config.sweep.changes:
        changed = copy.deepcopy(base)
        for field, value in fields:
            if field in given:
                raise ConfigError(
                    f"--config.{field} cannot be set: the sweep sets it ({name!r}: {value!r})."
                )
            if field not in flatten(base):
                raise ConfigError(f"The variant {name!r} sets {field}, but there is no such field.")
            changed.update_from_flattened_dict({field: value})
        variants.append(Variant(name, dict(fields), changed))
    _require_different(variants)
    if config.sweep.baseline not in [variant.name for variant in variants]:
        raise ConfigError(f"The sweep has no variant {config.sweep.baseline!r}, its baseline.")
    return Sweep(tuple(variants), config.sweep.baseline)


def _require_different(variants: list[Variant]) -> None:
    for i, variant in enumerate(variants):
        if not variant.name or variant.folder.startswith("."):
            raise ConfigError(f"{variant.name!r} is no name of a variant: it names its folder.")
        for other in variants[:i]:
            if variant.folder == other.folder or variant.config.to_dict() == other.config.to_dict():
                raise ConfigError(
                    f"The variants {other.name!r} and {variant.name!r} of the sweep are the same."
                )
