"""Which errors end in a sentence: the user's, and no others, of every command."""

import ast
import errno
import functools
import os
import sys
import types

import PIL.Image
import pytest

from egmae_jax.commands import (
    audit,
    compare,
    demo,
    download,
    entropy_maps,
    explain,
    export,
    predict,
    report,
    sweep,
    train,
)
from egmae_jax.core import extras, files, preemption
from egmae_jax.core.errors import MissingExtraError, UserError
from egmae_jax.core.files import AccessError, explain_storage_errors, require_writable
from egmae_jax.data import images, prepare
from egmae_jax.data.datasets.folders import find_given
from egmae_jax.models import weights as model_weights
from tests.conftest import REPOSITORY

# The command, what does its work by where the command finds it, and flags with which that begins.
COMMANDS = {
    "train": (train, "experiment.run", ("--config=mine.py", "--workdir=out/run")),
    "sweep": (sweep, "variants.read", ("--config=mine.py", "--out=out/folder")),
    "audit": (audit, "prepare", ("--config=mine.py", "--out=out/folder")),
    "entropy_maps": (entropy_maps, "entropy_maps.run", ("--config=mine.py", "--out=out/folder")),
    "predict": (
        predict,
        "predictions.find_given",
        ("--workdir=run", "--images=a.png", "--out=out/t.csv"),
    ),
    "report": (report, "write_report", ("--workdir=run", "--out=out/report.html")),
    "table": (report, "write_table", ("--workdir=run", "--table=out/table.tex")),
    "comparison": (
        report,
        "write_comparison",
        ("--workdir=run", "--workdir=b", "--out=out/c.html"),
    ),
    "export": (export, "run.export_run", ("--workdir=run", "--out=out/models")),
    "gradcam": (explain, "cam_study.explain_run", ("--workdir=run", "--out=out/heat")),
    "demo": (demo, "launch.serve", ("--workdir=run", "--no-open")),
    "compare": (
        compare,
        "compare.compare",
        ("--checkpoint=a.pth", "--images=images"),
    ),
    "download": (download, "download.download", ("kvasir", "out/kvasir")),
}
CONFIG = """
from pathlib import Path
from tests import tiny

def get_config():
    return tiny.make_config(Path("data"), Path("cache"))
"""
OWN_STATUS = {"compare": 2}


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Starts a command in an empty folder; returns its exit status and what it prints of errors."""
    monkeypatch.chdir(tmp_path)
    for module, *_ in COMMANDS.values():
        monkeypatch.setattr(module.console, "set_up_logging", lambda **_: None)  # global
    monkeypatch.setattr(train.gc, "freeze", lambda: None)
    monkeypatch.setattr(preemption, "install", lambda: None)
    (tmp_path / "mine.py").write_text(CONFIG)

    def start(name, *arguments):
        module, _, usual = COMMANDS[name]
        try:
            status = module.main(arguments or usual)
        except SystemExit as stop:
            status = stop.code
        return status or 0, capsys.readouterr().err

    return start


@pytest.fixture
def work_raises(monkeypatch):
    """Lets what does a command's work raise an error."""

    def inject(name, error):
        module, work, _ = COMMANDS[name]
        *path, last = work.split(".")
        for part in path:
            module = getattr(module, part)

        def broken(*_, **__):
            raise error

        monkeypatch.setattr(module, last, broken)

    return inject


BUGS = [
    KeyError("bug"),
    ImportError("bug"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/of/ours"),
    PermissionError(errno.EACCES, "Permission denied", "/of/ours"),
]


@pytest.mark.parametrize(
    ("name", "bug"),
    [*((name, ValueError("bug")) for name in COMMANDS), *(("report", bug) for bug in BUGS)],
)
def test_a_bug_keeps_its_traceback(name, bug, command, work_raises):
    work_raises(name, bug)
    with pytest.raises(type(bug)) as raised:
        command(name)
    assert raised.value is bug


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_user_can_mend_is_a_sentence(name, command, work_raises):
    work_raises(name, UserError("x is a cat; a dog is expected."))
    assert command(name) == (OWN_STATUS.get(name, 1), "Error: x is a cat; a dog is expected.\n")


WRITING = [name for name in COMMANDS if name not in ("train", "sweep", "demo", "compare")]


@pytest.mark.parametrize("name", WRITING)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    name, command, work_raises, monkeypatch, tmp_path
):
    if name == "predict":  # which first finds its images, one of which must not be its output
        PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
        monkeypatch.setattr(predict.predictions, "Predictor", AssertionError("begun"))
    elif name == "export":  # whose function for Python asks, too
        monkeypatch.setattr(export.run, "SavedRun", AssertionError("begun"))
    else:
        work_raises(name, AssertionError("begun"))
    (tmp_path / "out").write_text("")
    status, error = command(name)
    assert status == OWN_STATUS.get(name, 1)
    assert "cannot be written to" in error
    assert "a file, not a folder" in error


def test_a_place_that_takes_no_files_is_named_with_the_reason(tmp_path, monkeypatch):
    for folder in ("/proc/a/b", "/dev/null/a"):
        with pytest.raises(AccessError, match="--out=x cannot be written to"):
            require_writable(files.Path(folder), "--out=x")

    def refuse(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "TemporaryFile", refuse)
        with pytest.raises(AccessError, match="Read-only file system"):
            require_writable(tmp_path / "x", "--out=x")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root is forbidden nothing
    with pytest.raises(AccessError, match="not writable"):
        require_writable(tmp_path / "x", "--out=x")


@pytest.mark.parametrize("name", ["predict", "report", "table", "export", "gradcam", "demo"])
def test_a_workdir_that_holds_no_run_is_named(name, command, tmp_path):
    PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
    if name == "demo":
        pytest.importorskip("nicegui")
    assert command(name) == (1, "Error: run holds no run: there is no config.json in it.\n")


def test_a_forbidden_folder_of_the_users_is_named_and_another_is_a_bug(tmp_path):
    ours = tmp_path / "run"
    refused = PermissionError(errno.EACCES, "Permission denied", str(ours / "export" / "x"))
    with (
        pytest.raises(AccessError, match=r"export/x cannot be used \(Permission denied\)"),
        explain_storage_errors(ours),
    ):
        raise refused
    with pytest.raises(PermissionError), explain_storage_errors(tmp_path / "other"):
        raise refused
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", str(ours / "x"))
    with pytest.raises(FileNotFoundError), explain_storage_errors(ours):
        raise missing  # what should be there is asked for where it is read


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"whatever")

    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(AccessError, match=r"model\.safetensors cannot be used \(Permission denied"):
        model_weights.read(path)
    (tmp_path / "x.json").touch()
    with pytest.raises(files.DamagedFileError, match=r"x\.json cannot be read \(Permission denied"):
        files.read_json(tmp_path / "x.json")


def test_a_folder_that_cannot_be_listed_is_not_called_empty(tmp_path, monkeypatch):
    (tmp_path / "a" / "locked").mkdir(parents=True)
    PIL.Image.new("L", (8, 8)).save(tmp_path / "a" / "1.png")
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(AccessError, match=r"a/locked cannot be used \(Permission denied\)"):
        find_given([tmp_path / "a"])


def test_a_bug_while_images_are_read_is_no_unreadable_image(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        PIL.Image.new("L", (8, 8)).save(tmp_path / "data" / name / "a.png")

    def broken(*_):
        raise OSError("bug")

    monkeypatch.setattr(images, "examine", broken)
    options = {"on_error": "skip", "near_duplicate_threshold": 0.1}
    with pytest.raises(OSError, match="bug"):
        prepare.prepare("image_folder", tmp_path / "data", tmp_path / "cache", **options)


# --- Flags ----------------------------------------------------------------------------------------


def test_a_bug_in_a_config_file_keeps_its_traceback(command, tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    open('/of/ours')\n")
    with pytest.raises(OSError, match="No such file or directory: '/of/ours'"):
        command("train")


def test_words_for_a_config_that_takes_none_are_refused(command):
    status, error = command("train", "--config=mine.py:cpu", "--workdir=out/run")
    assert status == 1
    sentence = "The config file mine.py accepts no words after a colon; give --config=mine.py."
    assert error == f"Error: {sentence}\n"


# --- The code -------------------------------------------------------------------------------------


@functools.cache
def syntax():
    """File, parsed text and lines of every module of the package."""
    texts = {path: path.read_text() for path in REPOSITORY.glob("egmae_jax/**/*.py")}
    return [(path, ast.parse(text), text.splitlines()) for path, text in texts.items()]


def test_an_error_is_caught_broadly_only_with_a_reason_or_to_raise_it_again():
    """The code of others, on files of others, raises whatever it stumbles upon."""
    for path, tree, lines in syntax():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            assert node.type is not None, f"{path}, line {node.lineno}: a bare except"
            if ast.unparse(node.type) in ("Exception", "BaseException"):
                raises = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
                reason = "#" in lines[node.lineno - 1]
                assert reason or raises, f"{path}, line {node.lineno} gives no reason"


def test_every_class_of_errors_is_the_users():
    bases = {"UserError": {"Exception"}}
    for _, tree, _ in syntax():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                bases[node.name] = {ast.unparse(base).split(".")[-1] for base in node.bases}
    assert all(base <= bases.keys() | {"Exception"} for base in bases.values()), bases
    assert [name for name, base in bases.items() if "Exception" in base] == ["UserError"]


def test_torchvision_of_another_build_is_taken_with_a_warning(monkeypatch, caplog):
    """As where its compiled operators do not load: the import stops at each that it describes."""
    defined = []
    library = types.SimpleNamespace(define=lambda name, schema: defined.append(name))
    torch = types.SimpleNamespace(library=library, __version__="2.0")

    def load(name):
        if name == "torch":
            return torch
        for operator in ("nms", "roi_align"):
            if f"torchvision::{operator}" not in defined:
                raise RuntimeError(f"operator torchvision::{operator} does not exist")
        return types.SimpleNamespace(__version__="1.0")

    monkeypatch.setattr(extras.importlib, "import_module", load)
    monkeypatch.setattr(extras.logger, "propagate", True)
    extras.require("torch", "torchvision", extra="parity")
    assert "torchvision 1.0 was not built for torch 2.0" in caplog.text


def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"timm cannot be imported .*\[parity\]"):
        extras.require("timm", extra="parity")
