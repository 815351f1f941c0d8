"""The package as it is installed from a wheel, in an empty folder and with nothing of the clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import egmae_jax
from tests import REPOSITORY

SOURCES = ("egmae_jax", "configs", "pyproject.toml", "setup.py", "requirements.txt", "README.md")
TINY = (
    *("--config.data.image_size=32", "--config.data.store_size=40"),
    "--config.branches=('squeezenet1_1',)",
    *("--config.finetune.epochs=1", "--config.finetune.warmup_epochs=0"),
    *("--config.evaluation.bootstrap_resamples=20", "--config.evaluation.report=False"),
)
pytestmark = [pytest.mark.slow, pytest.mark.essential]


def run(*command, folder, **variables):
    """Runs a command to its end in a folder; returns what it printed."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that the wheel is installed into."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, folder / "source" / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index", "--quiet")
    build = ("wheel", *offline, "--no-build-isolation", "--wheel-dir=wheels", "./source")
    run(*pip, *build, folder=folder)
    (wheel,) = (folder / "wheels").glob("*.whl")
    assert wheel.name.startswith(f"egmae_jax-{egmae_jax.__version__}-")
    run(*pip, "install", *offline, "--target=site", wheel, folder=folder)
    shutil.rmtree(folder / "source")
    data_set = folder / "site" / "egmae_jax" / "data" / "datasets" / "phantoms.py"
    text = data_set.read_text()
    assert text.count("IMAGES_PER_CLASS = 1000") == 1
    data_set.write_text(text.replace("IMAGES_PER_CLASS = 1000", "IMAGES_PER_CLASS = 20"))
    return folder / "site"


@pytest.fixture
def user(installed, tmp_path):
    """Runs a command of somebody who has only the wheel, in a folder of their own."""

    def start(*command):
        return run(*command, folder=tmp_path, PYTHONPATH=str(installed))

    return start


def test_a_wheel_has_everything_that_a_user_calls(installed, user, tmp_path):
    egmae = installed / "bin" / "egmae"
    assert user(egmae, "--version") == f"egmae_jax {egmae_jax.__version__}\n"
    here = user(sys.executable, "-c", "import egmae_jax; print(egmae_jax.__file__)")
    assert Path(here.strip()) == installed / "egmae_jax" / "__init__.py"

    # A run by a config of the package, on phantoms that it makes.
    user(egmae, "train", "--config=configs/demo.py", "--workdir=run", *TINY)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["dataset"]["name"] == "phantoms"

    # A config of the clone, as a file anywhere; and one of the package, varied by a sweep.
    data = (f"--config.data.cache_dir={tmp_path / 'cache'}", "--config.data.name=phantoms",
            "--config.data.dir=runs/phantoms")  # fmt: skip
    (tmp_path / "far").mkdir()
    config = shutil.copy(REPOSITORY / "configs" / "busi.py", tmp_path / "far" / "busi.py")
    user(sys.executable, "-m", "egmae_jax.audit", f"--config={config}", *data, "--out=first")
    user(egmae, "audit", "--config", "configs/kvasir.py:cpu", *data, "--out", "second")
    audits = [json.loads((tmp_path / x / "audit.json").read_text()) for x in ("first", "second")]
    assert [audit["images"] for audit in audits] == [60, 60]
    program = "from egmae_jax.sweep import variants; print(variants.base('busi,cpu').data.name)"
    assert user(sys.executable, "-c", program) == "busi\n"
    table = ("--workdir=run", "--table=table.tex")  # by the templates that the wheel has
    user(sys.executable, "-m", "egmae_jax.report", *table)
    assert "toprule" in (tmp_path / "table.tex").read_text()
