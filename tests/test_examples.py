"""The examples run, and the library needs neither flags nor a config."""

import runpy
import subprocess
import sys

import pytest

from tests import tiny
from tests.conftest import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


def test_there_is_an_example_of_each_part():
    names = {path.stem for path in EXAMPLES}
    assert {"corruption", "models", "interop", "explain", "evaluate"} <= names


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 3
    assert not list(tmp_path.iterdir())  # leaves nothing behind
    assert f"python examples/{path.name}" in path.read_text()


def test_the_library_is_imported_without_flags_or_a_config():
    program = (
        "from absl import flags\n"
        "known = set(flags.FLAGS)\n"
        "from egmae_jax import models\n"
        "from egmae_jax.method import corruption, fusion\n"
        "from egmae_jax.evaluation import calibration, ensemble, metrics\n"
        "from egmae_jax.models import timm\n"
        "from egmae_jax.explain import entropy_maps, gradcam, localization, overlay\n"
        "import sys\n"
        "ours = [f for f in set(flags.FLAGS) - known"
        " if 'egmae' in str(flags.FLAGS.find_module_defining_flag(f))]\n"
        "assert not ours, ours\n"
        "assert not any(name.split('.')[0] in ('configs', 'torch') for name in sys.modules)\n"
    )
    environment = tiny.environment()
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
