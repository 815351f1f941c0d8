"""Which errors end in a sentence: the user's, and no others."""

import ast
import errno
import os
import sys
import types

import PIL.Image
import pytest

from egmae_jax.core import console, extras, files
from egmae_jax.core.errors import ConfigError, MissingExtraError
from egmae_jax.core.files import AccessError, explain_storage_errors, require_writable
from egmae_jax.data import images
from egmae_jax.data.datasets.folders import find_given
from egmae_jax.models import weights as model_weights
from tests import REPOSITORY
from tests.data.writers import prepare_folder

BUGS = [
    ValueError("bug"),
    KeyError("bug"),
    ImportError("bug"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/of/ours"),
    PermissionError(errno.EACCES, "Permission denied", "/of/ours"),
]


def test_what_a_user_can_mend_is_a_sentence_and_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as stop, console.user_errors(status=2):
        raise ConfigError("x is a cat; a dog is expected.")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "Error: x is a cat; a dog is expected.\n"
    for bug in BUGS:
        with pytest.raises(type(bug)) as raised, console.user_errors():
            raise bug
        assert raised.value is bug


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
        prepare_folder("image_folder", tmp_path / "data", tmp_path / "cache", **options)


def test_every_class_of_errors_is_the_users():
    bases = {"UserError": {"Exception"}}
    for path in REPOSITORY.glob("egmae_jax/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                bases[node.name] = {ast.unparse(base).split(".")[-1] for base in node.bases}
    assert bases.pop("MisfitError") == {"ValueError"}  # which callers make sentences of
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
