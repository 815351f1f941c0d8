"""Shared by all tests: the compilation cache, the real images, small data sets."""

import fcntl
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from tests import REPOSITORY

# The same examples in every run, and no verdict by the clock of a machine that others use too.
hypothesis.settings.register_profile(
    "repository", derandomize=True, deadline=None, max_examples=100, database=None
)
hypothesis.settings.load_profile("repository")

# Before JAX is imported anywhere. Compiling costs most of the suite's time, so what one test,
# worker or run has compiled serves all others.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "egmae_jax_test_compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Real images, one folder a data set (busi/, isic2018/, brain_tumor_mri/).
SHARED_DATA = Path(os.environ.get("EGMAE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
SQUEEZENET_WEIGHTS = SHARED_DATA.parent / "weights" / "squeezenet1_1_torchvision_in1k.npz"
needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="the real images are not at hand"
)


HTML_CLASSES = {
    "benign": '<script>alert("a")<script>',
    "malignant": "\"><img src=x onerror='b()'>",
    "normal": "{{ 40013 * 50021 }} $x^2$ & <b>",
}


def once_for_all_workers(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of the processes of pytest-xdist fills by `make`."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of the folders of all workers
    folder, complete = root / name, root / f"{name}.complete"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


@pytest.fixture(scope="session")
def html_run(tmp_path_factory) -> tuple[Path, Path]:
    """Workdir and images of a finished run of two rounds, whose names are like HTML.

    No test changes it.
    """
    from tests import tiny  # imports JAX

    tiny.register()  # also in the workers that find the run made
    folder = once_for_all_workers(tmp_path_factory, "hostile", _make_html_run)
    return folder / "run", folder / "phantoms"


def _make_html_run(folder: Path) -> None:
    from egmae_jax import experiment  # imports JAX
    from tests import tiny

    data = tiny.make_data(folder / "phantoms")
    for name, label in HTML_CLASSES.items():
        (data / name).rename(data / label)
        for k, path in enumerate(sorted((data / label).glob("*.png"))):
            path.rename(path.with_name(f"<i>{k}<i> {path.name}"))
    fields = {"evaluation__report": True, "pretrain__epochs": 2, "finetune__epochs": 2}
    experiment.run(tiny.make_config(data, folder / "cache", **fields), folder / "run")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A tiny data set for whole runs, which no test changes."""
    from tests import tiny  # imports JAX

    return tiny.make_data(tmp_path_factory.mktemp("tiny") / "phantoms")


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """What `data.cache_dir` of its runs is."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def finished(data, cache, tmp_path_factory):
    """A complete run of two rounds, which no test changes: see `tiny.Finished`."""
    from tests import tiny

    return tiny.run_to_the_end(data, cache, tmp_path_factory.mktemp("finished"))


@pytest.fixture(autouse=True)
def _log_as_before():
    """Takes back what a command of the test has set up, whose stream ends with the test."""
    logger = logging.getLogger("egmae_jax")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `module.main` with flags and arguments; returns its exit status, output and errors."""
    from egmae_jax.core import console, preemption

    # Both change the process.
    monkeypatch.setattr(console, "set_up_logging", lambda **_: None)
    monkeypatch.setattr(preemption, "install", lambda: None)

    def start(module, *arguments, **flags):
        try:
            status = module.main([*(f"--{k}={v}" for k, v in flags.items()), *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        return status or 0, *capsys.readouterr()

    return start


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file that examples write again and again, and errors must name."""
    return tmp_path_factory.mktemp("file") / "file.x"
