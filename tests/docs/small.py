"""What makes the pages' commands take seconds: small networks, few images, epochs and rounds.

Networks keep their names and have four narrow blocks, timm's as well; ImageNet's weights are noise.
A config is checked at full size, then cut down. A run that was made before is copied.
"""

import argparse
import builtins
import contextlib
import functools
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.request
import webbrowser
import zipfile
from pathlib import Path
from typing import Any

import pooch
import pytest
from ml_collections import ConfigDict

from egmae_jax import experiment
from egmae_jax.commands.arguments import Parser
from egmae_jax.core import hosts
from egmae_jax.data import datasets, phantoms
from egmae_jax.models import registry
from egmae_jax.models import weights as model_weights
from egmae_jax.run import config as configs
from egmae_jax.run import rules
from egmae_jax.sweep import variants
from tests import tiny, torch_reference
from tests.docs import trees, weights

# What commands import besides, and would import anew in each process.
_PRELOADED = (
    *("deploy.compare", "deploy.predictions", "data.audit", "deploy.export.run"),
    *("explain.entropy_maps", "explain.gradcam", "report.page", "sweep.run"),
)
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
    "evaluation.resize": 32,
    "evaluation.bootstrap_resamples": 20,
    "mesh.fsdp": 1,
}
_CHECK = rules.check
_RESNET_DEPTHS, _RESNET_CHANNELS = (1, 1, 1, 1), (64, 8, 8, 8)  # the stem of timm's has 64
_TIMM = {
    "convnext": {"depths": tiny.ENTRY[0], "dims": tiny.ENTRY[1]},
    "resnet": {"layers": _RESNET_DEPTHS, "channels": _RESNET_CHANNELS},
}
_FOLDS = 3  # the fewest there can be
_IMAGES = 12  # a class of phantoms
# Benchmarks that are only parsed: of whole runs at full length.
PARSED_ONLY = ("benchmarks.soak",)
# What makes the others small, after their own options.
_BENCHMARKS = {
    "calibration": "--draws=2",
    "corruption": "--batch=1 --image_size=16 --rounds=1 --repeats=1",
    "coverage": "--trials=2 --resamples=20",
    "depthwise": "--batch=1 --shapes=4x3 --rounds=1",
    "gpu": "--minutes=.01",  # runs none of its benchmarks
    "input_pipeline": "--batch=16 --batches=5 --rounds=1 --only=decode",
    "layer_selection": "--batch=2 --image_size=32 --rounds=1",
    "operations": "--batch=1 --shapes=4x8 --rounds=1",
    "preparation": "--rounds=1",
    "pytorch_reference.main": "--image_size=32 --batch=8 --pretrain_epochs=1 --finetune_epochs=1",
    "recipe": f"--images={_IMAGES} --preset=1/1 --model=convnext_atto --image_size=32",
    "scaling": "--image_size=32 --batch=2",
    "train_memory": "--model=convnext_atto --image_size=32 --batches=1,2",
    "train_step": "--model=convnext_atto --image_size=32 --batch=2 --rounds=1",
}


def apply() -> None:
    """Makes everything small, in this process."""
    for name in _PRELOADED:
        importlib.import_module(f"egmae_jax.{name}")
    for name, spec in registry._SPECS.items():
        build: Any = spec.build
        sizes = {
            "convnext": tiny.ENTRY[:2],
            "resnet": (_RESNET_DEPTHS, _RESNET_CHANNELS, *build.args[2:]),
            "asff_resnet": (_RESNET_DEPTHS, _RESNET_CHANNELS, *build.args[2:]),
        }.get(spec.family, build.args)
        smaller = functools.partial(build.func, *sizes, **build.keywords)
        registry._SPECS[name] = spec._replace(build=smaller)
    phantoms.write = functools.partial(_write_phantoms, phantoms.write)
    experiment.run = functools.partial(_run, experiment.run)
    variants.read = functools.partial(_read, variants.read)
    hosts.join = functools.partial(_join_hosts, hosts.join)
    model_weights.locate = functools.partial(_locate, model_weights.locate)
    pooch.retrieve = _retrieve
    builtins.__import__ = functools.partial(_import, builtins.__import__)
    webbrowser.open = lambda url, new=0, autoraise=True: True


def end_after_parsing() -> None:
    """Has commands end once their arguments are parsed and their config is checked."""
    parser: Any = argparse.ArgumentParser
    parser.parse_args = _ending(parser.parse_args)
    Parser.read = _read_flags(Parser.read)  # type: ignore[method-assign]
    rules.check = _ending(rules.check)


def adapted(program: str, arguments: list[str], only_parsed: bool) -> list[str]:
    """The arguments that a program is given instead, and whatever else it needs."""
    if program == "pytest":
        return _only_listing(arguments)
    if program in (
        "egmae explain",
        "egmae_jax.explain.gradcam",
    ):  # the small run's networks have other layers
        return [argument for argument in arguments if not argument.startswith("--layer=")]
    if program in ("egmae demo", "egmae_jax.demo") and not only_parsed:
        _visit_the_page()
    if program.startswith("benchmarks.") and not only_parsed:
        os.environ.pop("XLA_FLAGS", None)  # some have images of full size, slow if not optimized
        # Their memory would be that of further processes, which import everything anew.
        given = [argument for argument in arguments if argument != "--memory"]
        return given + _BENCHMARKS[program.removeprefix("benchmarks.")].split()
    return arguments


def _ending(function):
    """The same, but what called it ends there: what follows its checks is not run."""

    def call(*given, **named):
        function(*given, **named)
        raise SystemExit(0)

    return call


def _read_flags(read):
    """`Parser.read`; a command without a config ends there, as it would read a run."""

    def call(self, given):
        options = read(self, given)
        if getattr(options, "config", None) is None:
            raise SystemExit(0)
        return options

    return call


def _is_only_to_be_accepted() -> bool:
    return "DOCS_ACCEPT" in os.environ


# --- Runs -----------------------------------------------------------------------------------------


def shrink(config: ConfigDict) -> ConfigDict:
    """A copy of a config, cut down."""
    small = config.copy_and_resolve_references()
    fields = configs.flatten(config)
    changes = {field: min(fields[field], cap) for field, cap in _CAPS.items()}
    if config.rounds.kind == "folds":
        changes["rounds.count"] = min(config.rounds.count, _FOLDS)
    with small.unlocked():
        small.update_from_flattened_dict(changes | {"evaluation.report": False, "mesh.data": -1})
    return small


def _run(run, config, workdir, stage="all", trackers=()):
    """`experiment.run`, cut down."""
    rules.check(config, max(1, config.mesh.fsdp))  # ends here where accepting is all
    config, workdir = shrink(config), Path(workdir)
    made = Path(os.environ["DOCS_RUNS"], _fingerprint(config, stage))
    if workdir.exists() or trackers:
        return run(config, workdir, stage, trackers)
    if not made.exists():
        found = run(config, workdir, stage)
        with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
            whole = shutil.copytree(workdir, Path(scratch, "whole"))
            try:
                whole.rename(made)
            except OSError:  # another process has made it meanwhile
                assert made.exists()
        return found
    if make := datasets.get(config.data.name).make:
        make(Path(config.data.dir))
    print(f"{workdir} is copied from the same run on another page or above.")
    shutil.copytree(made, workdir)
    results = workdir / "results.json"
    return json.loads(results.read_text()) if results.exists() else None


def _fingerprint(config: ConfigDict, stage: str) -> str:
    """Of everything that a run computes from."""
    folder = Path(config.data.dir)
    files = {str(x.relative_to(folder)): x.stat().st_size for x in folder.rglob("*") if x.is_file()}
    content = json.dumps([configs.flatten(config), stage, files], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _read(read, config, given=()):
    """`variants.read`: of a sweep its first two variants, its last and the baseline."""
    sweep = read(config, given)
    for variant in sweep.variants:
        _CHECK(variant.config, 1)
    if _is_only_to_be_accepted():
        raise SystemExit(0)
    first, last = sweep.variants[:2], sweep.variants[-1:]
    kept = [x for x in sweep.variants if x in (*first, *last) or x.name == sweep.baseline]
    small = [variant._replace(config=shrink(variant.config)) for variant in kept]
    return sweep._replace(variants=tuple(small))


def _join_hosts(join, coordinator=None, num_processes=None, process_id=None, **_):
    """`hosts.join`: the flags must belong together, but nobody is waited for."""
    given = (coordinator, num_processes, process_id)
    if None in given:
        return join(*given)
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 <= process_id < num_processes):
        raise ValueError(f"process {process_id} of {num_processes} at {coordinator}")


def _write_phantoms(write, folder, *, images_per_class, **named):
    """`phantoms.write`, fewer of them."""
    write(folder, images_per_class=min(images_per_class, _IMAGES), **named)


# --- From elsewhere -------------------------------------------------------------------------------


def _locate(locate, source):
    """`weights.locate`, with a file of noise for every repository of the hub that models name."""
    return weights.locate(str(source)) or locate(source)


def _retrieve(url, known_hash, fname, path, progressbar=False):
    """`pooch.retrieve`: archives of a few images instead of those that the publishers have."""
    name = {"isic-challenge-data": "isic2018", "kvasir-dataset-v2": "kvasir"}
    (name,) = [each for part, each in name.items() if part in url] or ["kvasir_v1"]
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, name)
        trees.make(tree)
        if (tree / fname).is_file():
            shutil.copy(tree / fname, path)
            return
        with zipfile.ZipFile(Path(path, fname), "w") as archive:
            for file in sorted((tree / Path(fname).stem).rglob("*")):
                archive.write(file, file.relative_to(tree))


def import_torch() -> None:
    """Imports it where it is there."""
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401


def _import(real, name, *given, **named):
    """`import`; makes timm's networks as small as ours when they come."""
    if name.partition(".")[0] != "timm":
        return real(name, *given, **named)
    if "timm" not in sys.modules:
        with contextlib.suppress(pytest.skip.Exception):
            torch_reference.torchvision()  # also where it was built for another torch
    module = real(name, *given, **named)
    for family, sizes in _TIMM.items():
        theirs = sys.modules.get(f"timm.models.{family}")
        create = getattr(theirs, f"_create_{family}", None)
        if create and not isinstance(create, _Shrunk):
            setattr(theirs, f"_create_{family}", _Shrunk(create, **sizes))
    return module


class _Shrunk(functools.partial):
    """timm's function that makes a network, with arguments that are not those it is called with."""

    def __call__(self, *given, **named):
        return self.func(*given, **named | self.keywords)


# --- Programs that do not end, or take long -------------------------------------------------------


def _visit_the_page() -> None:
    """Asks the demo for its page until it answers, and then ends it as Ctrl-C would."""
    from egmae_jax.deploy.demo import server

    listen, ports = server.listen, []

    def listen_anywhere(port):
        listener = listen(0)  # another test may have the port
        ports.append(listener.getsockname()[1])
        return listener

    def visit():
        end = time.monotonic() + 120
        while time.monotonic() < end:
            time.sleep(0.2)
            try:
                with urllib.request.urlopen(f"http://{server.HOST}:{ports[0]}/") as answer:
                    print(f"The page answers: {answer.status}, {len(answer.read())} bytes.")
                return os.kill(os.getpid(), signal.SIGINT)
            except (IndexError, OSError):
                continue
        print("The page does not answer.", file=sys.stderr)
        os._exit(1)

    server.listen = listen_anywhere
    threading.Thread(target=visit, daemon=True).start()


def _only_listing(arguments: list[str]) -> list[str]:
    """Options of pytest by which it only lists what it would run."""
    paths = [x.partition("::")[0] for x in arguments if x.startswith("tests")]
    if missing := [path for path in paths if not Path(path).exists()]:
        raise SystemExit(f"there is no {missing[0]}")
    if _is_only_to_be_accepted():
        raise SystemExit(0)
    # All tests take long to collect; this file has slow and fast ones.
    chosen = [] if paths else ["tests/training/test_loop.py"]
    return [*arguments, "--collect-only", "-q", "-p", "no:cacheprovider", *chosen]
