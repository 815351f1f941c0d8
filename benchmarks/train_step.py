"""Train steps and inference against PyTorch on the CPU: same work, same run, alternating.

python -m benchmarks.train_step --model=convnext_tiny --batch=16 --image_size=224 [--rounds=5] \
    [--steps=2] [--json=FILE]

Ours are the programs of a run, `--steps` steps in one dispatch: uint8 images on a canvas are
cropped, flipped, corrupted and learned from. The reference (`benchmarks/pytorch_reference`, eager,
fused AdamW) is given crops, in both memory formats; the faster one counts. Ratios are images/s of
ours over the reference's. compile_s is the fine-tuning program compiled with an empty cache,
cached_compile_s the same from the persistent cache, init_s initial parameters and optimizer state.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import torch
from flax import struct
from ml_collections import FrozenConfigDict

from benchmarks.pytorch_reference import model as reference
from configs import default
from egmae_jax import compilation, finetune, loop, models, optim, pretrain, sharding
from egmae_jax.data.pipeline import Images
from egmae_jax.models.initialize import initial_params
from egmae_jax.models.mae import MaskedAutoencoder

NUM_CLASSES = 3
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@struct.dataclass
class SameBatch:
    """Feeds every step with the same images."""

    images: Images

    def batch(self, index: jax.Array, mesh: Any) -> Images:
        """The batch of any step."""
        return self.images


def make_config(model: str, image_size: int) -> FrozenConfigDict:
    """The default recipe at another size."""
    config = default.get_config()
    with config.unlocked():
        config.model.name = model
        config.data.image_size = image_size
        config.finetune.resize = round(image_size * 236 / 224)
    return FrozenConfigDict(config)


def our_programs(
    config: FrozenConfigDict, images: Images, steps: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """What to time, each doing `steps` steps or one inference; and the times of getting ready."""
    mesh = sharding.make_mesh()
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    mask = jax.ShapeDtypeStruct((1, size // 16, size // 16), np.float32)
    classifier = models.create(
        config.model.name, NUM_CLASSES, drop_path_rate=config.finetune.drop_path_rate
    )
    autoencoder = MaskedAutoencoder(
        models.create(config.model.name, NUM_CLASSES), config.decoder.dim, config.decoder.depth
    )
    runs: dict[str, Callable[[], Any]] = {}
    times: dict[str, float] = {}
    feed, key = SameBatch(jax.device_put(images)), jax.random.key(0)
    for name, module, inputs, step, section in (
        ("train", classifier, (image,), finetune.finetune_step, config.finetune),
        ("pretrain", autoencoder, (image, mask), pretrain.pretrain_step, config.pretrain),
    ):
        started = time.perf_counter()
        params = initial_params(module, 0, *inputs)
        schedule = optim.cosine_schedule(section.learning_rate, total_steps=10**4, warmup_steps=10)
        optimizer = optim.adamw(
            schedule, params, weight_decay=section.weight_decay, betas=section.betas
        )
        state = sharding.replicate(loop.TrainState.create(params, optimizer), mesh)
        jax.block_until_ready(state)
        times.setdefault("init_s", time.perf_counter() - started)
        step = functools.partial(step, model=module, optimizer=optimizer, config=config)
        compile_ = functools.partial(_compile, step, mesh, state, feed, key, steps)
        program, seconds = compile_()
        if name == "train":
            times["compile_s"] = seconds
            jax.clear_caches()
            times["cached_compile_s"] = compile_()[1]
        runs[name] = _Training(program, state, feed, key, steps)
    params = jax.device_put(initial_params(classifier, 0, image))
    crops = jnp.asarray(images.pixels[:, :size, :size])
    predict = compilation.jit(functools.partial(finetune.class_probabilities, model=classifier))
    runs["inference"] = lambda: jax.block_until_ready(predict(params, crops))
    runs["inference"]()  # compiles
    return runs, times


def _compile(step, mesh, state, feed, key, steps) -> tuple[Callable, float]:
    started = time.perf_counter()
    program = loop.compile_steps(step, mesh).lower(state, feed, key, steps).compile()
    return program, time.perf_counter() - started


class _Training:
    """Goes on training with every call."""

    def __init__(self, program: Callable, state: Any, *arguments: Any):
        self._program, self._state, self._arguments = program, state, arguments

    def __call__(self) -> None:
        self._state, _ = self._program(self._state, *self._arguments)
        jax.block_until_ready(self._state)


def reference_programs(
    config: FrozenConfigDict, images: Images, memory_format: torch.memory_format
) -> dict[str, Callable[[], Any]]:
    """The same work in PyTorch, each a single step or inference."""
    size = config.data.image_size
    pixels = torch.from_numpy(images.pixels[:, :size, :size]).permute(0, 3, 1, 2)
    pixels = pixels.contiguous(memory_format=memory_format)
    labels = torch.from_numpy(images.labels).long()

    def trained(module, section):
        module = module.to(memory_format=memory_format)
        return module, reference.adamw(
            module, section.learning_rate, section.betas, section.weight_decay
        )

    classifier, classifier_optimizer = trained(
        reference.create_classifier(
            config.model.name, NUM_CLASSES, config.finetune.drop_path_rate
        ).train(),
        config.finetune,
    )
    autoencoder, autoencoder_optimizer = trained(
        reference.MaskedAutoencoder(
            config.model.name, config.decoder.dim, config.decoder.depth
        ).train(),
        config.pretrain,
    )
    fixed = reference.create_classifier(config.model.name, NUM_CLASSES).eval()
    fixed = fixed.to(memory_format=memory_format)
    patch_size = config.corruption.patch_size
    return {
        "train": lambda: reference.finetune_step(classifier, classifier_optimizer, pixels, labels),
        "pretrain": lambda: reference.pretrain_step(
            autoencoder, autoencoder_optimizer, pixels, patch_size
        ),
        "inference": lambda: reference.predict(fixed, pixels),
    }


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="convnext_tiny", choices=models.names())
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of ours in one dispatch")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = make_config(arguments.model, arguments.image_size)
    rng = np.random.default_rng(0)
    side = round(arguments.image_size * 256 / 224)
    images = Images(
        rng.integers(0, 256, (arguments.batch, side, side, 3), np.uint8),
        np.full((arguments.batch, 2), side, np.int32),
        rng.integers(0, NUM_CLASSES, arguments.batch, np.int32),
    )
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        ours, result = our_programs(config, images, arguments.steps)
    theirs = {name: reference_programs(config, images, form) for name, form in FORMATS.items()}
    table = rich.table.Table("", "ours ms", *(f"{name} ms" for name in FORMATS), "ratio")
    for work, run in ours.items():
        rows: dict[str, list[float]] = {"ours": [], **{name: [] for name in FORMATS}}
        for round_index in range(arguments.rounds + 1):
            times = {
                "ours": seconds(run) / (1 if work == "inference" else arguments.steps),
                **{name: seconds(programs[work]) for name, programs in theirs.items()},
            }
            if round_index:  # the first one warms up
                for name, value in times.items():
                    rows[name].append(value)
        medians = {name: statistics.median(values) for name, values in rows.items()}
        result[f"{work}_ratio"] = min(medians[name] for name in FORMATS) / medians["ours"]
        result |= {f"{work}_{name}_s": value for name, value in medians.items()}
        cells = [f"{1e3 * value:.0f}" for value in medians.values()]
        table.add_row(work, *cells, f"{result[f'{work}_ratio']:.2f}")
    console = rich.console.Console()
    console.print(table)
    console.print(
        f"initialised in {result['init_s']:.2f} s, compiled in {result['compile_s']:.1f} s, "
        f"from the cache in {result['cached_compile_s']:.1f} s"
    )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
