"""Where a page is run: what looks like a fresh clone, with what the page needs and stand-ins."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tests.docs import trees
from tests.docs.pages import REPOSITORY, Page

_COPIED = ("configs", "main.py", "pyproject.toml", "Makefile", "requirements.txt", "README.md")
_LINKED = ("egmae_jax", "benchmarks", "examples", "tests", "docs", "constraints.txt", "setup.py")
# Programs that are themselves; programs.py has the others, and what neither has is not found.
_REAL = (
    *("bash", "basename", "cat", "cp", "cut", "date", "dirname", "du", "echo", "env", "find"),
    *("grep", "head", "hostname", "id", "ln", "ls", "mkdir", "mktemp", "mv", "nohup"),
    *("rm", "sed", "seq", "sh", "sleep", "sort", "tail", "tar", "tee", "test", "touch", "tr"),
    *("true", "uniq", "unzip", "wc", "which", "xargs", "zip"),
)
_PROGRAMS = (
    *(
        "python",
        "python3",
        "egmae",
        "pytest",
        "pip",
        "uv",
        "make",
        "git",
        "gcloud",
        "srun",
        "sbatch",
    ),
    *(
        "scontrol",
        "sudo",
        "ssh",
        "hf",
        "tensorboard",
        "ruff",
        "mypy",
        "lint-imports",
        "sphinx-build",
        "xdg-open",
    ),
)
_IN_VENV = (
    "python",
    "egmae",
    "pip",
    "uv",
    "pytest",
    "ruff",
    "mypy",
    "lint-imports",
    "sphinx-build",
)
_PRETENDED = ("wandb", "mlflow")  # libraries that take any call
# Config and data of a run that is needed, by its name; of any other they are busi and busi.
_RUNS = {
    "brain": ("brain_tumor", "brain_tumor"),
    "covid": ("covid", "covid"),
    "isic2018": ("isic2018", "isic2018"),
    "kvasir": ("kvasir", "kvasir"),
    "mine": ("image_folder", "mine"),
    "skin": ("skin_lesions", "skin_lesions"),
    "skin_asff": ("skin_asff", "isic2018"),
}
# Each command ends when all that it has left in the background has: what it starts inherits
# descriptor 7.
_SHELL = """
command_not_found_handle() {
  echo "There is no program $1; see tests/docs/sandbox.py."
  echo "$1" >>"$DOCS_FAILED"
  return 127
}
export -f command_not_found_handle
while IFS= read -r -d '' command; do
  eval "$command" </dev/null 7>"$DOCS_BUSY" 8>&-
  echo $? >&8
done
"""


class Server:
    """The process that runs Python for the stand-ins; see tests/docs/server.py."""

    def __init__(self, folder: Path):
        self.address = folder / "server"  # a short path: a socket's has at most 107 bytes
        self.modules = folder / "modules"
        self.modules.mkdir()
        for name in _PRETENDED:
            text = f"import sys, unittest.mock\nsys.modules[{name!r}] = unittest.mock.MagicMock()\n"
            (self.modules / f"{name}.py").write_text(text)
        self.log = (folder / "server.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.docs.server", str(self.address)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while not self.address.exists():
            if self._process.poll() is not None:
                raise RuntimeError(f"The server ended: {(folder / 'server.log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it and all that it has started."""
        self._process.communicate()


class Sandbox:
    """A folder like a fresh clone, and a shell in it; used as a context.

    Attributes:
        folder: that holds it. A page's /share is a folder of that name in it.
        root: the clone. A page that begins with `git clone` begins in the folder that holds it.
        accept: whether commands are checked and not run.
    """

    def __init__(self, folder: Path, server: Server, runs: Path, accept: bool):
        self.folder, self.root, self.accept = folder, folder / "clone", accept
        self._log = folder / "log"
        self._busy = folder / "busy"
        self._failed = folder / "failed"
        self._notebook: socket.socket | None = None
        self.root.mkdir(parents=True)
        for name in _COPIED:
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
            copy(REPOSITORY / name, self.root / name)
        for name in _LINKED:
            (self.root / name).symlink_to(REPOSITORY / name)
        _write_programs(folder / "bin")
        for name in (".venv", ".venv-lowest", ".venv-newest"):
            _write_environment(self.root / name / "bin", folder / "bin")
        for name in ("installed", "installed-test", "installed-docs"):
            (self.root / ".venv" / name).touch()  # `make` need not
        for name in ("home", "share"):
            (folder / name).mkdir()
        os.mkfifo(self._busy)
        self._log.touch()
        self._failed.touch()
        self._environment = {
            **os.environ,
            "PATH": str(folder / "bin"),
            "HOME": str(folder / "home"),
            "MPLBACKEND": "Agg",
            "COLUMNS": "80",
            # Halves the time that compiling takes; programs run more slowly, which so small do not
            # matter.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "DOCS_BUSY": str(self._busy),
            "DOCS_MAKE": shutil.which("make") or "",
            "DOCS_MODULES": str(server.modules),
            "DOCS_FAILED": str(self._failed),
            "DOCS_ROOT": str(self.root),
            "DOCS_RUNS": str(runs),
            "DOCS_SERVER": str(server.address),
        }
        if accept:
            self._environment["DOCS_ACCEPT"] = "1"

    def __enter__(self) -> "Sandbox":
        read, write = os.pipe()
        with self._log.open("ab") as log:
            self._shell = subprocess.Popen(
                [shutil.which("bash") or "bash", "--norc", "-c", f"exec 8>&{write}\n{_SHELL}"],
                cwd=self.root,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
                start_new_session=True,
            )
        os.close(write)
        self._statuses = os.fdopen(read)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.communicate()
        self._statuses.close()
        if self._notebook:
            self._notebook.close()

    def localized(self, text: str) -> str:
        """The same, with /share in the sandbox."""
        return re.sub(r"(?<![\w.])/share\b", str(self.folder / "share"), text)

    def write(self, file: str, text: str) -> None:
        """Writes a file that the page shows."""
        path = self.root / self.localized(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{file} is a link into the repository; see _LINKED")
        path.write_text(self.localized(text) + "\n")

    def provide(self, name: str) -> None:
        """Makes what a page needs: a data set, a finished run, weights or an image."""
        path = self.root / self.localized(name)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".npz", ".safetensors"):
            self._make(f"python -m tests.docs.weights {path.stem} {name}")
        elif path.suffix:
            trees.write_image(path)
        elif path.parent.name == "runs":
            config, data = _RUNS.get(path.name, ("busi", "busi"))
            tree = self.root / "data" / data
            was_there = tree.exists()
            self.provide(f"data/{data}")
            self._make(
                f"python main.py --config=configs/{config}.py --config.data.dir=data/{data} "
                f"--workdir={name}"
            )
            if not was_there:  # a page must do with what it says it needs
                shutil.rmtree(tree)
        else:
            trees.make(path)

    def _make(self, command: str) -> None:
        status, output = self.run(command)
        if status:
            raise RuntimeError(f"{command} ended with status {status}:\n{output}")

    def run(self, command: str, timeout: float = 600) -> tuple[int, str]:
        """Runs a command in the shell; returns its exit status and what it printed."""
        begin = self._log.stat().st_size
        busy = os.open(self._busy, os.O_RDONLY | os.O_NONBLOCK)
        assert self._shell.stdin
        with contextlib.suppress(BrokenPipeError):  # a command before has ended the shell
            self._shell.stdin.write(self.localized(command).encode() + b"\0")
            self._shell.stdin.flush()
        ready, _, _ = select.select([self._statuses], [], [], timeout)
        line = self._statuses.readline() if ready else ""
        status = int(line or 1)
        end = time.monotonic() + timeout
        while ready and line and not _is_closed(busy) and time.monotonic() < end:
            time.sleep(0.02)
        os.close(busy)
        output = self._log.read_bytes()[begin:].decode(errors="replace")
        if not line:
            note = "The shell has ended." if ready else "It does not end."
            self._failed.write_text(note)
            output += f"\n{note}"
        return status, output

    def run_snippet(self, page: Page, line: int, source: str) -> tuple[int, str]:
        """Runs Python in the page's namespace, as `run` does."""
        begin = self._log.stat().st_size
        if self._notebook is None:
            self._notebook = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._notebook.connect(self._environment["DOCS_SERVER"])
            message = {
                "arguments": ["notebook"],
                "folder": str(self.root),
                "environment": self._environment,
            }
            with self._log.open("ab") as log, open(os.devnull) as nothing:
                files = [nothing.fileno(), log.fileno(), log.fileno()]
                socket.send_fds(self._notebook, [json.dumps(message).encode()], files)
        snippet = {"path": str(page.path), "line": line, "source": source}
        self._notebook.send(json.dumps(snippet).encode())
        status = int(self._notebook.recv(100) or 1)
        return status, self._log.read_bytes()[begin:].decode(errors="replace")

    def failed(self) -> str:
        """The programs that ended with another status than 0 since this was last asked."""
        found = self._failed.read_text()
        self._failed.write_text("")
        return found


def _is_closed(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def _write_programs(folder: Path) -> None:
    folder.mkdir()
    for name in _REAL:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    path = Path(__file__).with_name("programs.py")
    for name in _PROGRAMS:
        # Without the site's packages it starts in a tenth of the time.
        text = f'#!/bin/sh\nexec "{sys.executable}" -SE "{path}" {name} "$@"\n'
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def _write_environment(venv: Path, programs: Path) -> None:
    venv.mkdir(parents=True)
    for name in _IN_VENV:
        (venv / name).symlink_to(programs / name)
    (venv / "activate").touch()
