"""Which errors end in a sentence: the user's, and no others, of every command."""

import ast
import errno
import os
import subprocess
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
from egmae_jax.data import datasets, prepare, records
from egmae_jax.data.datasets.folders import find_given
from egmae_jax.data.samples import BY_TYPE
from egmae_jax.deploy import predictor
from egmae_jax.models import weights as model_weights
from tests import forks, tiny
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
    """Starts a command in an empty folder; returns its exit status and what it says of errors."""
    monkeypatch.chdir(tmp_path)
    for module, *_ in COMMANDS.values():
        monkeypatch.setattr(module.console, "set_up_logging", lambda **_: None)  # global
    monkeypatch.setattr(train.gc, "freeze", lambda: None)
    monkeypatch.setattr(preemption, "install", lambda: None)
    (tmp_path / "mine.py").write_text(CONFIG)

    def start(name):
        module, _, arguments = COMMANDS[name]
        try:
            status = module.main(arguments)
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
    ValueError("bug"),
    KeyError("bug"),
    RuntimeError("bug"),
    ImportError("bug"),
    OSError("bug"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/of/ours"),
    PermissionError(errno.EACCES, "Permission denied", "/of/ours"),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_bug_keeps_its_traceback(name, bug, command, work_raises):
    work_raises(name, bug)
    with pytest.raises(type(bug)) as raised:
        command(name)
    assert raised.value is bug


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_user_can_mend_is_a_sentence(name, command, work_raises):
    work_raises(name, UserError("x is a cat; a dog is expected."))
    assert command(name) == (OWN_STATUS.get(name, 1), "Error: x is a cat; a dog is expected.\n")


def test_a_traceback_is_what_python_shows_and_status_1(tmp_path):
    program = """if True:
        import sys
        from egmae_jax.commands import report
        def broken(*_, **__):
            raise ValueError("bug")
        report.write_report = broken
        sys.exit(report.main(sys.argv[1:]))
    """
    done = subprocess.run(
        [sys.executable, "-c", program, "--workdir=run", f"--out={tmp_path / 'r.html'}"],
        capture_output=True,
        text=True,
        env=tiny.environment(),
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("ValueError: bug\n")


WRITING = [name for name in COMMANDS if name not in ("train", "sweep", "demo", "compare")]


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("how", ["forbidden", "read-only disk", "a file in the way"])
def test_an_output_that_cannot_be_written_is_told_before_any_work(
    name, how, command, work_raises, monkeypatch, tmp_path
):
    if name == "predict":  # which first finds its images, one of which must not be its output
        PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
        monkeypatch.setattr(predict.predictions, "Predictor", AssertionError("begun"))
    elif name == "export":  # whose function for Python asks, too
        monkeypatch.setattr(export.run, "SavedRun", AssertionError("begun"))
    else:
        work_raises(name, AssertionError("begun"))
    if how == "forbidden":  # root is forbidden nothing
        monkeypatch.setattr(os, "access", lambda *_: False)
    elif how == "read-only disk":

        def refuse(dir):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

        monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    else:
        (tmp_path / "out").write_text("")
    status, error = command(name)
    assert status == OWN_STATUS.get(name, 1)
    assert "cannot be written to" in error
    what = {"a file in the way": "a file, not a folder", "read-only disk": "Read-only file system"}
    assert what.get(how, "not writable") in error
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("kind", ["missing", "a file", "empty"])
@pytest.mark.parametrize("name", ["predict", "report", "table", "export", "gradcam", "demo"])
def test_a_workdir_that_holds_no_run_is_named(name, kind, command, tmp_path):
    PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
    if name == "demo":
        pytest.importorskip("nicegui")
    if kind == "a file":
        (tmp_path / "run").write_text("")
    elif kind == "empty":
        (tmp_path / "run").mkdir()
    status, error = command(name)
    assert status == 1
    assert error == "Error: run holds no run: there is no config.json in it.\n"


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


def test_a_sentence_of_a_full_disk_stays_as_it_is(tmp_path):
    said = UserError(f"x: {os.strerror(errno.ENOSPC)}")
    with pytest.raises(UserError) as raised, explain_storage_errors(tmp_path):
        raise said
    assert raised.value is said


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"whatever")

    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(AccessError, match=r"model\.safetensors cannot be used \(Permission denied"):
        model_weights.read(path)
    with pytest.raises(AccessError):
        files.read_npz(path)
    (tmp_path / "x.json").touch()
    with pytest.raises(files.DamagedFileError, match=r"x\.json cannot be read \(Permission denied"):
        files.read_json(tmp_path / "x.json")


@pytest.mark.parametrize("folder", ["/proc", "/dev/null"])
def test_places_that_take_no_files_are_told(folder):
    with pytest.raises(AccessError, match="--out=x cannot be written to"):
        require_writable(files.Path(folder) / "a" / "b", "--out=x")


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


def test_a_missing_library_of_the_users_is_told_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    dicom = bytes(128) + b"DICM"
    with pytest.raises(MissingExtraError, match=r"reading DICOM needs pydicom: .*\[dicom\]"):
        records.images.examine(dicom)


def test_reading_images_keeps_bugs(tmp_path, monkeypatch):
    """What is no refusal to read a file is no unreadable file."""
    PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
    bug = OSError("bug")

    def broken(*_):
        raise bug

    monkeypatch.setattr(records.images, "examine", broken)
    with pytest.raises(OSError, match="bug") as raised:
        records._describe(tmp_path, "a.png", BY_TYPE)
    assert raised.value is bug
    of_run = types.SimpleNamespace(
        config=types.SimpleNamespace(data=types.SimpleNamespace(color="rgb")), intensity=BY_TYPE
    )
    seen = types.SimpleNamespace(run=of_run, _intensity=BY_TYPE)
    with pytest.raises(OSError, match="bug"):
        predictor.Predictor._view(seen, tmp_path / "a.png")
    assert predictor.Predictor._view(seen, tmp_path / "b.png") == "No such file or directory"


def test_records_that_cannot_be_written_are_told_and_bugs_are_not(tmp_path, monkeypatch):
    data = tmp_path / "data"
    for name in ("cat", "dog"):
        (data / name).mkdir(parents=True)
        PIL.Image.new("L", (8, 8)).save(data / name / "a.png")

    def raises(error):
        def broken(*_):
            raise error

        monkeypatch.setattr(records, "_write", broken)

    def start():
        given = {"on_error": "raise", "near_duplicate_threshold": 0.1}
        prepare.prepare("image_folder", data, tmp_path / "cache", **given)

    full = os.strerror(errno.ENOSPC)
    raises(RuntimeError(f"write() failed: {full}; writing /x; at byte 9"))  # array_record's
    with pytest.raises(datasets.DataError, match=r"\(data\.cache_dir\): .*GB left"):
        start()
    for bug in (OSError("bug"), RuntimeError("bug")):
        raises(bug)
        with pytest.raises(type(bug), match="bug"):
            start()


# --- Flags ----------------------------------------------------------------------------------------


def flags_of(tmp_path, text, *more):
    """Starts main.py with a config file of the user's."""
    (tmp_path / "mine.py").write_text(text)
    arguments = [f"--config={tmp_path / 'mine.py'}{more[0] if more else ''}", *more[1:]]
    done = forks.run("main.py", f"--workdir={tmp_path / 'run'}", *arguments)
    return done.returncode, done.stderr


DEFAULT = "from egmae_jax.run.default_config import get_config\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("def get_config():\n    raise KeyError('bug')\n", "KeyError: 'bug'"),
        ("def get_config():\n    raise ValueError('bug')\n", "ValueError: bug"),
        ("def get_config():\n    open('/of/ours')\n", "No such file or directory: '/of/ours'"),
    ],
)
def test_a_bug_in_a_config_file_keeps_its_traceback(text, shown, tmp_path):
    status, error = flags_of(tmp_path, text)
    assert status == 1
    assert "Traceback" in error
    assert shown in error


def test_words_for_a_config_that_takes_none_are_told(tmp_path):
    status, error = flags_of(tmp_path, DEFAULT, ":cpu")
    assert (status, error) == (
        1,
        f"Error: The config file {tmp_path / 'mine.py'} takes no words behind a colon.\n",
    )


# --- The code -------------------------------------------------------------------------------------

# Where all errors are caught: the code of others, on files of others, raises whatever it stumbles
# upon; or what failed is told with its traceback and does not stop what is independent of it.
BROAD = {
    "egmae_jax/data/formats/dicom.py": 1,  # pydicom
    "egmae_jax/data/formats/tiff.py": 1,  # tifffile; Pillow then says what is wrong
    "egmae_jax/data/download.py": 2,  # pooch's HTTP library; readers of archives
    "egmae_jax/data/images.py": 1,  # Pillow
    "egmae_jax/data/records.py": 2,  # TFDS, array_record, protobuf
    "egmae_jax/deploy/checkpoint.py": 1,  # torch.load
    "egmae_jax/deploy/demo/page.py": 1,  # told with its traceback
    "egmae_jax/core/files.py": 3,  # raised again, twice; numpy's reader of archives
    "egmae_jax/models/weights.py": 1,  # the hub's HTTP library
    "egmae_jax/core/preemption.py": 1,  # raised again
    "egmae_jax/sweep/run.py": 1,  # told with its traceback
    "egmae_jax/run/trackers.py": 2,  # the user's own code
}


def handlers():
    """Every `except` of the package, the commands and the configs: file, names, lines."""
    paths = [*REPOSITORY.glob("egmae_jax/**/*.py"), *REPOSITORY.glob("configs/**/*.py")]
    for path in [*paths, REPOSITORY / "main.py"]:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ExceptHandler):
                caught = set() if node.type is None else {ast.unparse(node.type)}
                if isinstance(node.type, ast.Tuple):
                    caught = {ast.unparse(x) for x in node.type.elts}
                yield path.relative_to(REPOSITORY).as_posix(), caught, node, text


def test_no_error_is_caught_broadly_but_where_code_of_others_raises_anything():
    found: dict[str, int] = {}
    for file, caught, node, text in handlers():
        assert caught, f"{file}, line {node.lineno}: a bare except"
        if caught & {"Exception", "BaseException"}:
            found[file] = found.get(file, 0) + 1
            line = text.splitlines()[node.lineno - 1]
            raises = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            assert "#" in line or raises, f"{file}, line {node.lineno} gives no reason"
    assert found == BROAD


def test_commands_make_sentences_of_the_users_errors_alone():
    both = [
        f"{file}, line {node.lineno}"
        for file, caught, node, _ in handlers()
        if {"ValueError", "OSError"} <= caught and not file.endswith("tensors.py")
    ]
    assert both == []
    failing = {
        (file, *sorted(caught))
        for file, caught, node, _ in handlers()
        if any(isinstance(x, ast.Attribute) and x.attr == "fail" for x in ast.walk(node))
    }
    stopped = {"KeyboardInterrupt", "preemption.Preempted"}
    assert not {row for row in failing if not set(row[1:]) <= stopped}


def test_every_named_error_is_the_users_or_says_why_not():
    """A class of errors of the package is a UserError."""
    for path in REPOSITORY.glob("egmae_jax/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                (base,) = map(ast.unparse, node.bases)
                known = ("UserError", "DataError", "DamagedFileError", "StageError", "ConfigError")
                assert base.split(".")[-1] in known or node.name == "UserError", (path, node.name)


def test_torchvision_of_another_build_is_taken_and_told(monkeypatch, caplog):
    """As where its compiled operators do not load: the import stops at each that it describes."""
    defined = []
    library = types.SimpleNamespace(define=lambda name, schema: defined.append(name))
    torch = types.SimpleNamespace(library=library, __version__="2.0")
    described = ["nms", "roi_align"]

    def find(name):
        if name == "torch":
            return torch
        for operator in described:
            if f"torchvision::{operator}" not in defined:
                raise RuntimeError(f"operator torchvision::{operator} does not exist")
        return types.SimpleNamespace(__version__="1.0")

    monkeypatch.setattr(extras.importlib, "import_module", find)
    monkeypatch.setattr(extras.logger, "propagate", True)
    extras.require("torch", "torchvision", extra="parity")
    assert defined == ["torchvision::nms", "torchvision::roi_align"]
    assert "torchvision 1.0 was built for another torch than 2.0" in caplog.text

    def broken(name):
        raise RuntimeError("something else")

    monkeypatch.setattr(extras.importlib, "import_module", broken)
    with pytest.raises(MissingExtraError, match="not built for each other"):
        extras.require("torchvision", extra="parity")
