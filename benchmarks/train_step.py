"""Training steps and inference compared with PyTorch, in alternating processes of one run.

python -m benchmarks.train_step --model=convnext_tiny --batch=16 --image_size=224 \
    [--dtype=bfloat16] [--work=train,pretrain,inference] [--peer=compiled,...] [--rounds=3] \
    [--steps=N] [--deterministic] [--profile] [--json=FILE]

Ours are the programs of a run, `--steps` steps in one dispatch: uint8 images on a canvas are
cropped, flipped, corrupted and learned from. The reference (`benchmarks/pytorch_reference`, fused
AdamW) is given crops that are already on the device. On a CPU it runs eagerly in both memory
formats, on a GPU channels last, compiled, with and without CUDA graphs; bfloat16 is its autocast.
The fastest counts: ratios are images/s of ours over those of the reference.

compile_s is the fine-tuning program traced and compiled with an empty cache, cached_compile_s the
same from the persistent cache, cached_load_s XLA's part of that, init_s initial parameters and
optimizer state. On a GPU the peak memory of each is told, and the shares of the measured ceilings
of matrix products and of memory.
"""

import argparse
import concurrent.futures
import functools
import gc
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory too

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import torch
from flax import struct
from ml_collections import FrozenConfigDict

from benchmarks import timing
from benchmarks.inputs import NUM_CLASSES, make_images
from benchmarks.programs import make_config
from benchmarks.pytorch_reference import model as networks
from benchmarks.pytorch_reference import training
from egmae_jax import models
from egmae_jax.core import platform, sharding
from egmae_jax.data.pipeline import Images
from egmae_jax.models.init import initial_variables
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.training import finetune, loop, optim, pretrain
from egmae_jax.training.state import TrainState

_program: Callable[[], Any]  # of a contestant's process
WORKS = ("train", "pretrain", "inference")
CUDA = torch.cuda.is_available()
# How the reference runs: memory format, mode of torch.compile or None.
PEERS: dict[str, tuple[torch.memory_format, str | None]] = (
    {
        "compiled": (torch.channels_last, "default"),
        "CUDA graphs": (torch.channels_last, "reduce-overhead"),
    }
    if CUDA
    else {
        "channels_last": (torch.channels_last, None),
        "contiguous": (torch.contiguous_format, None),
    }
)


@struct.dataclass
class SameBatch:
    """Feed that gives every step the same images."""

    images: Images

    def batch(self, index: jax.Array, mesh: Any) -> Images:
        """Returns the batch of any step."""
        return self.images


class OurTraining:
    """One of our training programs, which continues with each call, and its start-up times."""

    def __init__(self, work: str, config: FrozenConfigDict, images: Images, steps: int):
        size = config.data.image_size
        image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
        create = functools.partial(
            models.create,
            config.model.name,
            NUM_CLASSES,
            dtype=jnp.dtype(config.model.dtype),
            remat=config.model.rematerialize,
        )
        if work == "train":
            module = create(drop_path_rate=config.finetune.drop_path_rate)
            inputs, step, section = (image,), finetune.finetune_step, config.finetune
        else:
            module = MaskedAutoencoder(create(), config.decoder.dim, config.decoder.depth)
            mask = jax.ShapeDtypeStruct((1, size // 16, size // 16), np.float32)
            inputs, step, section = (image, mask), pretrain.pretrain_step, config.pretrain
        self._mesh, self._steps = sharding.make_mesh(), steps
        self._feed = SameBatch(jax.device_put(images))
        started = time.perf_counter()
        variables = initial_variables(module, 0, *inputs)
        schedule = optim.cosine_schedule(section.learning_rate, total_steps=10**6, warmup_steps=10)
        optimizer = optim.adamw(
            schedule, variables["params"], weight_decay=section.weight_decay, betas=section.betas
        )
        self._state = TrainState.create(variables, optimizer, self._mesh)
        jax.block_until_ready(self._state)
        self.init_s = time.perf_counter() - started
        self._step = functools.partial(step, model=module, optimizer=optimizer, config=config)
        self.program, self.compile_s, _ = self.compile()

    def compile(self) -> tuple[Any, float, float]:
        """Returns the program, the seconds of tracing and compiling, and XLA's part of these."""
        started = time.perf_counter()
        lowered = loop.compile_steps(self._step, self._mesh).lower(*self._arguments())
        traced = time.perf_counter()
        program = lowered.compile()
        return program, time.perf_counter() - started, time.perf_counter() - traced

    def _arguments(self) -> tuple[Any, ...]:
        return self._state, self._feed, jax.random.key(0), self._steps

    def __call__(self) -> None:
        self._state, _ = self.program(*self._arguments())
        jax.block_until_ready(self._state)


def our_inference(config: FrozenConfigDict, images: Images) -> Callable[[], Any]:
    """Returns the class probabilities of one batch."""
    size = config.data.image_size
    classifier = models.create(config.model.name, NUM_CLASSES, dtype=jnp.dtype(config.model.dtype))
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    variables = jax.device_put(initial_variables(classifier, 0, image))
    crops = jnp.asarray(images.pixels[:, :size, :size])
    predict = platform.jit(functools.partial(finetune.class_probabilities, model=classifier))
    return lambda: jax.block_until_ready(predict(variables, crops))


def reference(
    work: str, config: FrozenConfigDict, images: Images, steps: int, peer: str
) -> Callable[[], Any]:
    """Returns the same work in PyTorch: `steps` steps, or one inference."""
    memory_format, mode = PEERS[peer]
    device = torch.device("cuda" if CUDA else "cpu")
    autocast = config.model.dtype == "bfloat16"
    size = config.data.image_size
    pixels = torch.from_numpy(images.pixels[:, :size, :size]).permute(0, 3, 1, 2)
    pixels = pixels.to(device).contiguous(memory_format=memory_format)
    labels = torch.from_numpy(images.labels).long().to(device)

    def place(module: torch.nn.Module) -> torch.nn.Module:
        return module.to(device, memory_format=memory_format)

    def wait() -> None:
        if CUDA:
            torch.cuda.synchronize()

    name = config.model.name
    if work == "inference":
        classifier = place(networks.create_classifier(name, NUM_CLASSES)).eval()
        predict = torch.compile(networks.predict, mode=mode) if mode else networks.predict

        def infer() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                predict(classifier, pixels)
            wait()

        return infer
    if work == "train":
        section = config.finetune
        module = networks.create_classifier(name, NUM_CLASSES, section.drop_path_rate)
        loss, batch = networks.classification_loss, (pixels, labels)
    else:
        section = config.pretrain
        module = networks.MaskedAutoencoder(name, config.decoder.dim, config.decoder.depth)
        loss, batch = networks.pretraining_loss, (pixels, config.corruption.patch_size)
    module = place(module.train())
    optimizer = training.adamw(module, section.learning_rate, section.betas, section.weight_decay)
    trainer = training.Trainer(module, loss, optimizer, compiled=mode, autocast=autocast)

    def train() -> None:
        for _ in range(steps):
            trainer.step(*batch)
        wait()

    return train


def seconds(function: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


class Contestant:
    """Our program or a form of the reference, in a process of its own.

    In one process they slow each other down on a CPU: by threads that spin after their work, and by
    what each leaves in the allocator. Each turn begins with a run that is not timed, because users
    train without pauses.
    """

    def __init__(self, *task: Any):
        context = multiprocessing.get_context("spawn")
        self._executor = concurrent.futures.ProcessPoolExecutor(1, context)
        self.figures = self._executor.submit(_prepare, *task)  # a future

    def seconds(self) -> float:
        """Returns the seconds that one run takes."""
        return self._executor.submit(_run).result()

    def stop(self) -> None:
        """Ends the process."""
        self._executor.shutdown()


def _prepare(name: str, work: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes a contestant's program in its process and runs it twice; returns its figures."""
    global _program
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    training.make_fast()
    gc.freeze()  # as main.py does
    config = make_config(arguments.model, arguments.image_size, dtype=arguments.dtype)
    images = make_images(arguments.batch, arguments.image_size)
    figures: dict[str, Any] = {}
    if name != "ours":
        _program = reference(work, config, images, arguments.steps, name)
        _program(), _program()  # compiles, records graphs
        if CUDA:
            figures["peak_bytes"] = torch.cuda.max_memory_allocated()
        return figures
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        if work == "inference":
            _program = our_inference(config, images)
        else:
            _program = ours = OurTraining(work, config, images, arguments.steps)
            figures |= {"compile_s": ours.compile_s, "init_s": ours.init_s}
            jax.clear_caches()
            _, figures["cached_compile_s"], figures["cached_load_s"] = ours.compile()
            cost = ours.program.cost_analysis() or {}
            figures |= {"flops": cost.get("flops"), "bytes": cost.get("bytes accessed")}
        _program(), _program()  # inference compiles
    if CUDA:
        figures["peak_bytes"] = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    if arguments.profile:
        steps = 1 if work == "inference" else arguments.steps
        figures["top_kernels_ms"] = timing.top_kernels(_program, steps)
    return figures


def _run() -> float:
    _program()  # warms up: while the others ran, caches and memory went to them
    return seconds(_program)


def measure_work(work: str, peers: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures a row of the table: seconds a step or inference, by contestant."""
    steps = 1 if work == "inference" else arguments.steps
    result: dict[str, Any] = {}
    contestants: dict[str, Contestant] = {}
    for name in ("ours", *peers):
        contestants[name] = Contestant(name, work, arguments)
        if name == "ours" or not CUDA:  # a GPU's reference compiles for long, all forms at once
            contestants[name].figures.exception()
    for name, contestant in list(contestants.items()):
        try:
            result |= {f"{name}_{k}": v for k, v in contestant.figures.result().items()}
        except Exception as error:  # ours must run; a peer that cannot is told in the table
            if name == "ours":
                raise
            result[f"{name}_failed"] = timing.failure(error)
            contestants.pop(name).stop()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, contestant in contestants.items():
            times[name].append(contestant.seconds() / steps)
    for contestant in contestants.values():
        contestant.stop()
    medians = {name: statistics.median(values) for name, values in times.items()}
    result |= {f"{name}_s": value for name, value in medians.items()}
    fastest = min((value for name, value in medians.items() if name != "ours"), default=None)
    result["ratio"] = fastest / medians["ours"] if fastest else None
    return {f"{work}_{name}": value for name, value in result.items()}


def main(argv: list[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="convnext_tiny", choices=models.names())
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--work", default=",".join(WORKS))
    parser.add_argument("--peer", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=5 if CUDA else 3)
    parser.add_argument("--steps", type=int, default=20 if CUDA else loop._MIN_STEPS)
    parser.add_argument("--deterministic", action="store_true", help="ours, as main.py has it")
    parser.add_argument("--profile", action="store_true", help="the longest kernels of ours")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    peers = [name for name in arguments.peer.split(",") if name]
    if unknown := set(peers) - set(PEERS) or set(arguments.work.split(",")) - set(WORKS):
        parser.error(f"there is no {', '.join(unknown)}; here are {', '.join([*PEERS, *WORKS])}")
    if arguments.deterministic:
        platform.make_deterministic()  # of the processes that are started from here
    result: dict[str, Any] = {
        "batch": arguments.batch,
        "dtype": arguments.dtype,
        "deterministic": arguments.deterministic,
    }
    table = rich.table.Table("", "ours ms", *(f"{name} ms" for name in peers), "ratio")
    for work in arguments.work.split(","):
        result |= measure_work(work, peers, arguments)
        times = (result.get(f"{work}_{name}_s") for name in ("ours", *peers))
        cells = ("failed" if x is None else f"{1e3 * x:.4g}" for x in times)
        ratio = result[f"{work}_ratio"]
        table.add_row(work, *cells, f"{ratio:.2f}" if ratio else "")
    for name in ("compile_s", "cached_compile_s", "cached_load_s", "init_s"):
        if f"train_ours_{name}" in result:
            result[name] = result.pop(f"train_ours_{name}")
    console = rich.console.Console()
    console.print(table)
    console.print(
        f"{timing.machine()}, torch {torch.__version__}, {arguments.model}, batch "
        f"{arguments.batch}, {arguments.image_size} pixels, {arguments.dtype}"
    )
    if "compile_s" in result:
        console.print(
            f"initialised in {result['init_s']:.2f} s, compiled in {result['compile_s']:.1f} s, "
            f"from the cache in {result['cached_compile_s']:.1f} s, of which XLA takes "
            f"{result['cached_load_s']:.1f} s to read the program"
        )
    if CUDA:
        result |= timing.ceilings(arguments.dtype, arguments.rounds)
        for work in (w for w in arguments.work.split(",") if result.get(f"{w}_ours_flops")):
            step = result[f"{work}_ours_s"]
            matrix = result[f"{work}_ours_flops"] / step / result["matrix_flops_per_s"]
            memory = result[f"{work}_ours_bytes"] / step / result["copy_bytes_per_s"]
            peak = result[f"{work}_ours_peak_bytes"] / 1e9
            console.print(
                f"{work}: {matrix:.0%} of the ceiling of matrix products, {memory:.0%} of the "
                f"memory's, peak {peak:.2f} GB"
            )
    for key, kernels in result.items():
        if key.endswith("top_kernels_ms"):
            console.print(f"\n{key.removesuffix('_ours_top_kernels_ms')}, ms a step:")
            for name, value in kernels.items():
                console.print(f"{value:9.3f}  {name[:90]}", markup=False, highlight=False)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
