"""A whole run that takes seconds: networks of four blocks on 32-pixel phantoms.

`python -m tests.tiny DATA CACHE WORKDIR [field=value ...]` runs it as a process of its own, with
TINY_HOSTS="address:port processes index" as one of several hosts.
"""

import ast
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util
from ml_collections import ConfigDict

from egmae_jax import experiment, models
from egmae_jax.core import console, hosts, preemption
from egmae_jax.data import phantoms
from egmae_jax.evaluation.features import load_features
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.models import registry, timm
from egmae_jax.models.asff import ASFFResNet, register_asff
from egmae_jax.models.convnext import ConvNeXt, register_convnext
from egmae_jax.models.init import initial_variables
from egmae_jax.models.resnet import ResNet, register_resnet
from tests import REPOSITORY

MODEL = "convnext_test"
ENTRY = ((1, 1, 1, 1), (8, 12, 16, 20), "none")
RESNET = "resnet_test"  # and so ASFF
ASFF = f"asff_{RESNET}"
RESNET_ENTRY = ((1, 1, 1, 1), (4, 8, 8, 8), False)


def make_data(folder: Path) -> Path:
    """Twelve phantoms a class, smaller than the demo's."""
    phantoms.write(folder, images_per_class=12, seed=0, height=48, width=64)
    return folder


def register() -> None:
    """Makes the models known by their names."""
    register_convnext(MODEL, *ENTRY)
    register_resnet(RESNET, RESNET_ENTRY)
    register_asff(RESNET, RESNET_ENTRY)


def shrink_networks(resnet=RESNET_ENTRY[:2]) -> None:
    """Makes every model of the registry as small as these, but for SqueezeNets."""
    for name, spec in registry.NETWORKS.entries.items():
        build: Any = spec.build
        sizes = {
            ConvNeXt: ENTRY[:2],
            ResNet: (*resnet, *build.args[2:]),
            ASFFResNet: (*resnet, *build.args[2:]),
        }.get(build.func, build.args)
        smaller = functools.partial(build.func, *sizes, **build.keywords)
        registry.NETWORKS.entries[name] = spec._replace(build=smaller)


def make_config(data: Path, cache: Path, **changes):
    """The default config, shrunk; `changes` are fields with __ for the dot."""
    from egmae_jax.run import default_config

    register()
    config = default_config.get_config()
    fields = {
        "data.name": "image_folder",
        "data.dir": str(data),
        "data.cache_dir": str(cache),
        "data.image_size": 32,
        "data.store_size": 40,
        "model.name": MODEL,
        "decoder.dim": 16,
        "pretrain.epochs": 3,
        "pretrain.warmup_epochs": 1,
        "pretrain.batch_size": 8,
        "finetune.epochs": 3,
        "finetune.batch_size": 8,
        "finetune.resize": 34,
        "finetune.learning_rate": 1e-3,
        "imagenet.weights": "none",
        "rounds.count": 2,
        "evaluation.batch_size": 8,
        "evaluation.bootstrap_resamples": 20,
        "evaluation.report": False,
        "tensorboard.events": False,
    }
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(fields)
    return config


def write_weights(path: Path, name: str, seed: int):
    """Writes random weights of a model for ImageNet's classes, and returns them."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = initial_variables(models.create(name, 1000), seed, image)
    timm.save(variables, path, name)
    return variables


class Recorder:
    """A tracker that keeps what it takes, and stops the run at a step as Ctrl-C would."""

    def __init__(self, stop=None):
        self.stop, self.rows = stop, []

    def log(self, stage, round, step, metrics):
        if (stage, step) == self.stop:
            raise KeyboardInterrupt
        self.rows.append((stage, round, step, dict(metrics)))


class Finished(NamedTuple):
    """A run that is complete."""

    workdir: Path
    results: dict[str, Any]  # what the run returned
    rows: list[tuple]  # what a tracker took
    config: ConfigDict


def run_to_the_end(data: Path, cache: Path, workdir: Path) -> Finished:
    """Makes a complete run with TensorBoard's events and pictures."""
    config = make_config(data, cache, tensorboard__events=True, tensorboard__panel_epochs=2)
    recorder = Recorder()
    results = experiment.run(config, workdir, trackers=[recorder])
    return Finished(workdir, results, recorder.rows, config)


def main(data: str, cache: str, workdir: str, *fields: str) -> None:
    changes = dict(field.split("=", 1) for field in fields)
    if "TINY_HOSTS" in os.environ:
        address, count, index = os.environ["TINY_HOSTS"].split()
        hosts.join(address, int(count), int(index), timeout_seconds=10)
    console.set_up_logging(quiet=not hosts.is_primary())
    config = make_config(
        Path(data),
        Path(cache),
        **{name.replace(".", "__"): _literal(value) for name, value in changes.items()},
    )
    preemption.install()
    try:
        experiment.run(config, workdir)
    except preemption.Preempted as stop:
        stop.exit()


def _literal(text: str):
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def environment(**variables: str) -> dict[str, str]:
    """The environment for a process of its own."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}


def free_port() -> int:
    """Of this machine, free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def python(*arguments, cwd=REPOSITORY, **variables: str) -> subprocess.CompletedProcess:
    """Runs `python ARGUMENTS` in a folder, which must end with status 0."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_process(data, cache, workdir, *fields, **variables) -> subprocess.Popen:
    """Starts a run as a process of its own."""
    command = [sys.executable, "-m", "tests.tiny", str(data), str(cache), str(workdir), *fields]
    return subprocess.Popen(
        command,
        env=environment(**variables),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(workdir: Path) -> dict[str, np.ndarray]:
    """Everything a run computes, as bytes or numbers that must not differ between two runs."""
    arrays = {}
    for path in sorted(workdir.rglob("*.safetensors")):
        for name, array in safetensors.numpy.load_file(path).items():
            arrays[f"{path.relative_to(workdir)}:{name}"] = array
    for path in sorted(workdir.glob("predictions/*.npz")):
        arrays[str(path.relative_to(workdir))] = load_predictions(path).probabilities
    for path in sorted(workdir.glob("features/*.npz")):
        arrays[str(path.relative_to(workdir))] = load_features(path).features
    return arrays


def flatten(tree) -> dict[str, Any]:
    """Leaves by their paths, with / between the names."""
    return traverse_util.flatten_dict(tree, sep="/")


def assert_same(first, second, **tolerance) -> None:
    """Holds two outcomes to be the same, bit for bit unless a tolerance is given."""
    assert first.keys() == second.keys()
    for name, array in first.items():
        if tolerance:
            np.testing.assert_allclose(array, second[name], err_msg=name, **tolerance)
        else:
            assert np.array_equal(array, second[name]), name


if __name__ == "__main__":
    main(*sys.argv[1:])
