"""The documentation is built without a warning, and names every flag that there is."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Programs of absl, whose flags docs/reference/commands.md lists by hand.
PROGRAMS = {
    "main.py": "main.py",
    "egmae_jax.data.audit": "egmae_jax/data/audit.py",
    "egmae_jax.sweep": "egmae_jax/commands/sweep.py",
    "egmae_jax.explain.entropy_maps": "egmae_jax/explain/entropy_maps.py",
}


@pytest.mark.essential
@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    # 'dummy' reads all pages and docstrings and resolves all links; only HTML is not written.
    command = (sys.executable, "-m", "sphinx", "-qW", "--keep-going", "-b", "dummy", "docs")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    built = subprocess.run(
        (*command, str(tmp_path)), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert not built.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_reference_names_every_flag(program):
    page = (ROOT / "docs/reference/commands.md").read_text()
    section = page.split(f"\n## {program}\n")[1].split("\n## ")[0]
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / PROGRAMS[program]).read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("DEFINE_")
    ]
    flags = {call.args[0].value: call.func.attr for call in calls}
    assert flags
    for flag, kind in flags.items():
        off = kind == "DEFINE_boolean" and f"`--no{flag}`" in section
        assert off or f"`--{flag}`" in section, flag
