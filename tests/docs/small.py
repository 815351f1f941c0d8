"""Makes whatever the pages' commands do small: networks, runs, sweeps, generated images.

Networks keep their names and have four narrow blocks, timm's as well. A config is checked at full
size, then cut down; ImageNet's weights are taken from files alone.
"""

import argparse
import contextlib
import functools
import importlib
import os
import sys
import unittest.mock
from typing import Any

import pytest
from ml_collections import ConfigDict

from egmae_jax import experiment
from egmae_jax.commands import COMMANDS
from egmae_jax.commands.arguments import Parser
from egmae_jax.core import hosts
from egmae_jax.data import phantoms
from egmae_jax.run import config as configs
from egmae_jax.run import rules
from egmae_jax.sweep import variants
from tests import tiny, torch_reference

# The most that a field may be.
_CAPS = {
    "data.image_size": 32,
    "data.store_size": 40,
    "decoder.dim": 16,
    "pretrain.epochs": 1,
    "pretrain.batch_size": 8,
    "finetune.epochs": 1,
    "finetune.batch_size": 8,
    "finetune.resize": 34,
    "rounds.count": 2,
    "evaluation.batch_size": 8,
    "evaluation.resize": 36,
    "evaluation.bootstrap_resamples": 20,
    "mesh.fsdp": 1,
}
_CHECK = rules.check
_FOLDS = 3  # the fewest there can be
_IMAGES = 12  # a class of phantoms
_RESNET = ((1, 1, 1, 1), (64, 8, 8, 8))  # depths, channels; the stem of timm's has 64


def apply() -> None:
    """Makes everything small, in this process."""
    for name in COMMANDS:
        importlib.import_module(f"egmae_jax.commands.{name}")
    tiny.shrink_networks(_RESNET)
    with contextlib.suppress(pytest.skip.Exception):
        _shrink_timm()
    for name in ("wandb", "mlflow"):  # take any call
        sys.modules.setdefault(name, unittest.mock.MagicMock())
    experiment.run = functools.partial(_run, experiment.run)
    variants.read = functools.partial(_read, variants.read)
    phantoms.write = functools.partial(_write_phantoms, phantoms.write)
    hosts.join = lambda *_, **__: None


def end_after_parsing() -> None:
    """Has commands end once their arguments are parsed and their config is checked."""
    parser: Any = argparse.ArgumentParser
    parser.parse_args = _ending(parser.parse_args)
    Parser.read = _read_flags(Parser.read)  # type: ignore[method-assign]
    rules.check = _ending(rules.check)
    rules.check_data = _ending(rules.check_data)


def _ending(function):
    """The same function, which ends its caller when it is done."""

    def call(*args, **named):
        function(*args, **named)
        raise SystemExit(0)

    return call


def _read_flags(read):
    """`Parser.read`; a command without a config ends there, as it would read a run."""

    def call(self, arguments):
        options = read(self, arguments)
        if getattr(options, "config", None) is None:
            raise SystemExit(0)
        return options

    return call


def _shrink_timm() -> None:
    torch_reference.timm()
    sizes = {
        "convnext": {"depths": tiny.ENTRY[0], "dims": tiny.ENTRY[1]},
        "resnet": {"layers": _RESNET[0], "channels": _RESNET[1]},
    }
    for family, keywords in sizes.items():
        module = importlib.import_module(f"timm.models.{family}")
        create = getattr(module, f"_create_{family}")

        def smaller(*args, create=create, keywords=keywords, **named):
            return create(*args, **named | keywords)

        setattr(module, f"_create_{family}", smaller)


def _shrink(config: ConfigDict) -> ConfigDict:
    """A copy of a config, cut down."""
    small = config.copy_and_resolve_references()
    fields = configs.flatten(config)
    changes = {field: min(fields[field], cap) for field, cap in _CAPS.items()}
    if config.rounds.kind == "folds":
        changes["rounds.count"] = min(config.rounds.count, _FOLDS)
    if not os.path.exists(config.imagenet.weights):
        changes["imagenet.weights"] = "none"
    with small.unlocked():
        small.update_from_flattened_dict(changes | {"evaluation.report": False, "mesh.data": -1})
    return small


def _run(run, config, workdir, *args, **named):
    """`experiment.run`, cut down."""
    rules.check(config, max(1, config.mesh.fsdp))  # ends here where parsing is all
    return run(_shrink(config), workdir, *args, **named)


def _read(read, config, *args):
    """`variants.read`: of a sweep its first two variants, its last and the baseline."""
    sweep = read(config, *args)
    for variant in sweep.variants:
        _CHECK(variant.config, 1)
    first, last = sweep.variants[:2], sweep.variants[-1:]
    kept = [x for x in sweep.variants if x in (*first, *last) or x.name == sweep.baseline]
    small = [variant._replace(config=_shrink(variant.config)) for variant in kept]
    return sweep._replace(variants=tuple(small))


def _write_phantoms(write, folder, *, images_per_class, **named):
    """`phantoms.write`, fewer of them."""
    write(folder, images_per_class=min(images_per_class, _IMAGES), **named)
