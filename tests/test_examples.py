"""The examples run as they are."""

import runpy

import pytest

from tests import REPOSITORY

SLOW = (pytest.mark.slow, pytest.mark.essential)
SLOW_ONES = ("external_validation", "models", "unlabelled_images")  # they compile training steps
EXAMPLES = [
    pytest.param(path, id=path.stem, marks=SLOW if path.stem in SLOW_ONES else ())
    for path in sorted((REPOSITORY / "examples").glob("*.py"))
]


@pytest.mark.parametrize("path", EXAMPLES)
def test_the_example_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 3
    assert not list(tmp_path.iterdir())  # leaves nothing behind
    assert f"python examples/{path.name}" in path.read_text()
