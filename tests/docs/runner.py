"""Runs the pages' commands, each in a process forked off one that has imported everything."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

_TIMEOUT = 600  # seconds


class Runner:
    """The process that commands are forked off."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,))
        self._process.start()
        other.close()

    def run(
        self, command: Sequence[str], folder: Path, *, only_parsed: bool = False
    ) -> tuple[int, str]:
        """Runs a command in a folder; returns its exit status and what it printed.

        Args:
            command: `egmae ...` or `python ...`, in words.
            folder: the current folder of the command.
            only_parsed: ends the command once its arguments are parsed and its config is checked.
        """
        self._connection.send((list(command), folder, only_parsed))
        return self._connection.recv()

    def stop(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection) -> None:
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {
            "HOME": home,
            "MPLBACKEND": "Agg",
            # Programs compile in half the time and run more slowly, which so small do not matter.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        from tests.docs import small

        small.apply()
        _answer(connection)


def _answer(connection: Connection) -> None:
    """Runs what is asked for until the other end is closed."""
    while True:
        try:
            command, folder, only_parsed = connection.recv()
        except EOFError:
            return
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                signal.alarm(_TIMEOUT)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                os.chdir(folder)
                os._exit(_status_of(command, only_parsed))
            _, status = os.waitpid(child, 0)
            output.seek(0)
            connection.send((os.waitstatus_to_exitcode(status), output.read()))


def _status_of(command: Sequence[str], only_parsed: bool) -> int:
    """Calls a command as the interpreter would, and returns the exit status."""
    try:
        _call(command, only_parsed)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _call(command: Sequence[str], only_parsed: bool) -> None:
    from egmae_jax import commands
    from tests.docs import small

    if only_parsed:
        small.end_after_parsing()
    program, *arguments = command
    sys.path.insert(0, os.getcwd())
    if program == "egmae":
        sys.argv = ["egmae", *arguments]
        sys.exit(commands.main())
    if arguments[0] == "-c":
        exec(compile(arguments[1], "<command>", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
