"""CONTRIBUTING.md's data set, network, corruption and metric, run from a folder of their own."""

import re
import subprocess
import sys

import pytest

from egmae_jax.core.files import read_json
from egmae_jax.run.config import flatten
from tests import tiny
from tests.conftest import REPOSITORY

CONFIG = """
import clinic, small, blackout, kappa
from egmae_jax.models.convnext import register_convnext
from egmae_jax.run import default_config

register_convnext("convnext_own", (1, 1, 1, 1), (8, 12, 16, 20), "none")

def get_config():
    config = default_config.get_config()
    config.update_from_flattened_dict(FIELDS)
    return config
"""


def snippets() -> dict[str, str]:
    """The Python of each section of CONTRIBUTING.md, by its heading."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    matches = {title: re.search(r"```python\n(.*?)```", text, re.S) for title, text in sections}
    return {title: match[1] for title, match in matches.items() if match}


@pytest.mark.essential
@pytest.mark.slow
def test_a_file_of_each_kind_is_all_that_a_run_needs(tmp_path):
    modules = {"data set": "clinic", "network": "small", "corruption": "blackout"}
    modules |= {"metric": "kappa"}
    code = snippets()
    assert code.keys() == {f"A {kind}" for kind in modules}
    for kind, module in modules.items():
        (tmp_path / f"{module}.py").write_text(code[f"A {kind}"])
    tiny.make_data(tmp_path / "data")
    config = tiny.make_config(
        tmp_path / "data",
        tmp_path / "cache",
        data__name="clinic",
        branches=("mae", "small"),
        model__name="convnext_own",
        corruption__kind="blackout",
        rounds__count=1,
    )
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in flatten(config).items()}
    (tmp_path / "own.py").write_text(CONFIG.replace("FIELDS", repr(fields)))
    command = [sys.executable, "-m", "egmae_jax.commands.train", f"--config={tmp_path / 'own.py'}"]
    variables = tiny.environment()
    variables["PYTHONPATH"] += f":{tmp_path}"
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = read_json(tmp_path / "run" / "results.json")
    assert results["dataset"]["title"] == "Clinic"
    assert results["config"]["corruption"]["kind"] == "blackout"
    assert set(results["summary"]) == {"mae", "small", "ensemble"}
    assert -1 <= results["summary"]["small"]["kappa"]["mean"] <= 1
