"""Outputs, workdirs and configs that commands refuse, each in a sentence."""

import PIL.Image
import pytest

from egmae_jax.commands import (
    audit,
    demo,
    download,
    entropy_maps,
    evaluate,
    explain,
    export,
    predict,
    report,
)

# A command, and flags of what is not there.
WRITING = {
    "audit": (audit, "--config=mine.py", "--out=out/folder"),
    "entropy_maps": (entropy_maps, "--config=mine.py", "--out=out/folder"),
    "predict": (predict, "--workdir=run", "--images=a.png", "--out=out/t.csv"),
    "evaluate": (evaluate, "--workdir=run", "--images=data", "--out=out/external"),
    "report": (report, "--workdir=run", "--out=out/report.html"),
    "table": (report, "--workdir=run", "--table=out/table.tex"),
    "comparison": (report, "--workdir=run", "--workdir=b", "--out=out/c.html"),
    "export": (export, "--workdir=run", "--out=out/models"),
    "gradcam": (explain, "--workdir=run", "--out=out/heat"),
    "download": (download, "kvasir", "out/kvasir"),
}
READING = {
    **{
        name: WRITING[name]
        for name in ("predict", "evaluate", "report", "table", "export", "gradcam")
    },
    "demo": (demo, "--workdir=run", "--no-open"),
}
CONFIG = """
from pathlib import Path
from tests import tiny

def get_config():
    return tiny.make_config(Path("data"), Path("cache"))
"""


@pytest.fixture
def here(monkeypatch, tmp_path):
    """An empty folder in which commands run, but for a config and an image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CONFIG)
    PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
    return tmp_path


@pytest.mark.parametrize("name", WRITING)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(name, command, here):
    """Which would end in another sentence, as there is neither a run nor data."""
    (here / "out").write_text("")
    status, _, error = command(*WRITING[name])
    assert status == 1
    assert "cannot be written to" in error
    assert "a file, not a folder" in error


@pytest.mark.parametrize("name", READING)
def test_a_workdir_that_holds_no_run_is_named(name, command, here):
    if name == "demo":
        pytest.importorskip("nicegui")
    status, _, error = command(*READING[name])
    assert (status, error) == (1, "Error: run holds no run: there is no config.json in it.\n")


def test_a_bug_in_a_config_file_keeps_its_traceback(command, here):
    (here / "mine.py").write_text("def get_config():\n    open('/of/ours')\n")
    with pytest.raises(OSError, match="No such file or directory: '/of/ours'"):
        command(audit, "--config=mine.py", "--out=out/folder")


def test_words_for_a_config_that_takes_none_are_refused(command, here):
    status, _, error = command(audit, "--config=mine.py:cpu", "--out=out/folder")
    assert status == 1
    sentence = "The config file mine.py accepts no words after a colon; give --config=mine.py."
    assert error == f"Error: {sentence}\n"
