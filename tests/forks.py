"""Commands in processes of their own, as a user starts them, that are forked off one server.

Most of what a command that refuses takes is importing the package, which the server has done.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import REPOSITORY

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["egmae_jax.experiment", "tests.forks"])


def run(*arguments: str, cwd: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess:
    """`python ARGUMENTS`, the first of which is a file or -m, to its end.

    Args:
        variables: of its environment, beside those of this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = {1: Path(folder, "stdout"), 2: Path(folder, "stderr")}
        process = _CONTEXT.Process(
            target=_command, args=(arguments, cwd, {**os.environ, **variables}, streams)
        )
        process.start()
        process.join(120)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{arguments} goes on after two minutes")
        stdout, stderr = (path.read_text() for path in streams.values())
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def _command(arguments, cwd, variables, streams) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    for stream, path in streams.items():
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.path.insert(0, str(cwd))
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")
