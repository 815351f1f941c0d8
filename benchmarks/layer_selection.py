"""Savings by training a selection of layers: time, operations, optimizer state, memory.

python -m benchmarks.layer_selection [--model=squeezenet1_1] [--weights=FILE] [--batch=16] \
    [--image_size=224] [--share=.5] [--rounds=3] [--steps=2] [--json=FILE]

The programs are those of a run, `--steps` fine-tuning steps in one dispatch, and take turns in an
order that is drawn anew each round; the median counts. FLOPs and temporary memory are the
compiler's own figures, of one step: XLA counts the body of an inner loop, as ConvNeXts have them on
CPU, once. Images are random, which changes no time; so the layers of low entropy are not those of
a real run, and which of them is the lowest decides how far down gradients go.
"""

import argparse
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from ml_collections import FrozenConfigDict

from benchmarks import timing
from benchmarks.inputs import NUM_CLASSES, make_images
from egmae_jax import models
from egmae_jax.core import sharding
from egmae_jax.data.pipeline import Images, Order, Resident
from egmae_jax.method import augment, layer_entropy
from egmae_jax.models import timm, transfer
from egmae_jax.models.init import initial_variables
from egmae_jax.run import default_config, layer_selection
from egmae_jax.training import finetune, loop, optim
from egmae_jax.training.state import TrainState, count_parameters, partition

MODES = ("all", "low_entropy", "random", "head")
PyTree = Any


def make_config(model: str, image_size: int) -> FrozenConfigDict:
    """Returns the default recipe for one backbone at another size."""
    config = default_config.get_config()
    default_config.set_companion(config, model)
    config.data.image_size = image_size
    return FrozenConfigDict(config)


def start(model: models.Model, name: str, weights: str | None) -> PyTree:
    """Returns initial variables, random or from a file with a random head."""
    fresh = initial_variables(model, 0, jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    if weights is None:
        return fresh
    pretrained = timm.load(weights, models.imagenet_model(name))
    return transfer.start_finetuning(fresh, pretrained, keep_fresh=model.fresh_prefixes)


class Training:
    """Training program of one selection, which continues with each call."""

    def __init__(
        self,
        name: str,
        selection: layer_selection.Selection,
        variables: PyTree,
        images: Images,
        config: FrozenConfigDict,
        steps: int,
    ):
        mesh = sharding.make_mesh()
        params = variables["params"]
        optimizer = optim.adamw(lambda step: 1e-4, params, weight_decay=0.05)
        self._state = TrainState.create(variables, optimizer, mesh, selection.prefixes)
        step = functools.partial(
            finetune.finetune_step,
            model=models.create(name, NUM_CLASSES, frozen=selection.frozen),
            optimizer=optimizer,
            config=config,
            prefixes=selection.prefixes,
        )
        feed = Resident(sharding.replicate(images, mesh), Order(len(images), len(images), (0,)))
        self._arguments = feed.steps(0, steps)[1], jax.random.key(0), steps
        self._program = (
            loop.compile_steps(step, mesh).lower(self._state, *self._arguments).compile()
        )
        memory = self._program.memory_analysis()
        trained = partition(params, selection.prefixes)[0]
        self.figures: dict[str, Any] = {
            "parameters": count_parameters(trained),
            "flops": (self._program.cost_analysis() or {}).get("flops"),
            "optimizer_bytes": sum(x.nbytes for x in jax.tree.leaves(self._state.opt_state)),
            "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        }

    def __call__(self) -> Any:
        self._state, metrics = self._program(self._state, *self._arguments)
        return metrics


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the measurements of each mode."""
    name = arguments.model
    config = make_config(name, arguments.image_size)
    images = make_images(arguments.batch, arguments.image_size)
    model = models.create(name, NUM_CLASSES)
    variables = start(model, name, arguments.weights)
    params = variables["params"]
    size = arguments.image_size
    seen = augment.normalize(jnp.asarray(images.pixels[:, :size, :size]))
    sizes = layer_selection.sizes(model.layers, params)
    entropies = layer_selection.layer_entropies(model, variables, [(seen, jnp.ones(len(images)))])
    runs = {}
    for mode in MODES:
        chosen = layer_entropy.select(
            mode, sizes, count_parameters(params), share=arguments.share, entropies=entropies
        )
        selection = layer_selection.selection(model.layers, chosen)
        runs[mode] = Training(name, selection, variables, images, config, arguments.steps)
        jax.block_until_ready(runs[mode]())  # the first run warms up
    times = timing.median_ms(runs, arguments.rounds, arguments.steps)
    return {mode: {"step_s": times[mode] / 1e3, **run.figures} for mode, run in runs.items()}


def print_table(result: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints a row for each mode, with its time relative to training all layers."""
    table = rich.table.Table(
        rich.table.Column("", no_wrap=True),
        *("parameters", "ms a step", "GFLOP", "optimizer MB", "temporary MB"),
    )
    everything = result["all"]

    def scaled(value: float | None, unit: float) -> str:
        return "unknown" if value is None else f"{value / unit:.4g}"

    for mode, row in result.items():
        table.add_row(
            mode,
            f"{row['parameters']:,}",
            f"{1e3 * row['step_s']:.4g} ({row['step_s'] / everything['step_s']:.0%})",
            scaled(row["flops"], 1e9),
            scaled(row["optimizer_bytes"], 1e6),
            scaled(row["temporary_bytes"], 1e6),
        )
    rich.console.Console().print(table)


def main(argv: list[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="squeezenet1_1", choices=models.names())
    parser.add_argument("--weights", help=".safetensors or .npz; without, they are random")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=loop._MIN_STEPS)
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    result = measure(arguments)
    print_table(result)
    rich.console.Console().print(
        f"{timing.machine()}, {arguments.model}, batch {arguments.batch}, "
        f"{arguments.image_size} pixels, share {arguments.share}"
    )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
