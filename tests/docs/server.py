"""Runs Python for the pages' commands: imports everything once, forks for each.

python -m tests.docs.server SOCKET; tests/docs/programs.py is what `python` then is. Commands are
parsed and checked as they stand, at full size; tests/docs/small.py has what is made small after.
"""

import ast
import atexit
import importlib.util
import json
import os
import re
import runpy
import select
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

# Packages whose commands end once they have parsed their arguments, if that is all there is to do.
_ACCEPTING = ("egmae_jax", "benchmarks", "pytest", "tests")


def serve(address: str) -> None:
    """Answers until standard input is closed, as it is when whoever has started this ends."""
    from tests.docs import small  # imports everything, and JAX before any device is used

    small.apply()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the children
            content, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            message = json.loads(content)
            if any("benchmarks." in argument for argument in message["arguments"]):
                small.import_torch()  # once instead of in every child
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection, message, files)
            connection.close()
            for file in files:
                os.close(file)
    os.killpg(0, signal.SIGKILL)


def _answer(connection: socket.socket, message: dict[str, Any], files: list[int]) -> None:
    """Runs what is asked for in this process, and ends it."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(message["folder"])
    os.environ.clear()
    os.environ.update(message["environment"])
    # Configs may be the page's own; they are imported anew from where the command runs.
    for name in [x for x in sys.modules if x.partition(".")[0] == "configs"]:
        del sys.modules[name]
    sys.path[:0] = [os.environ["DOCS_MODULES"], os.environ["DOCS_ROOT"]]
    accept = "DOCS_ACCEPT" in os.environ
    if message["arguments"] == ["notebook"]:
        _notebook(connection, accept)
        status = 0
    else:
        status = _status_of(lambda: _run(message["arguments"], accept))
        connection.send(str(status).encode())
    connection.close()
    os._exit(status)


def _status_of(function) -> int:
    """Calls it as the interpreter would, to the end of the process, and returns the exit status."""
    try:
        function()
        status = 0
    except SystemExit as end:
        status = int(end.code) if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def _run(arguments: list[str], accept: bool) -> None:
    """What `python ARGUMENTS` does; where it is only to be accepted, as far as that is known."""
    from egmae_jax import commands
    from tests.docs import small

    rest = [*arguments]
    while rest and rest[0] in ("-u", "-B", "-q", "-I"):
        rest.pop(0)
    if not rest or rest[0] in ("--version", "-V"):
        print(f"Python {sys.version.split()[0]}")
    elif rest[0] in ("-c", "-"):
        source = rest[1] if rest[0] == "-c" else sys.stdin.read()
        code = compile(source, "<command>", "exec")
        sys.argv = ["-c", *rest[2:]]
        sys.path.insert(0, "")
        if accept:
            _import_ours(source, {})
        else:
            exec(code, {"__name__": "__main__"})
    elif rest[0] == "egmae":
        if accept:
            small.end_after_parsing()
        sys.argv = [rest[0], *rest[1:2], *small.adapted(" ".join(rest[:2]), rest[2:], accept)]
        sys.exit(commands.main())
    elif rest[0] == "-m":
        sys.path.insert(0, os.getcwd())
        module = rest[1]
        if importlib.util.find_spec(module) is None:
            raise SystemExit(f"there is no module {module}")
        if accept and module.partition(".")[0] not in _ACCEPTING:
            return
        only_parsed = accept or module in small.PARSED_ONLY
        if only_parsed:
            small.end_after_parsing()
        sys.argv = [module, *small.adapted(module, rest[2:], only_parsed)]
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif rest[0].startswith("-"):
        raise SystemExit(f"{rest[0]} is no option that tests/docs/server.py knows")
    else:
        sys.path.insert(0, str(Path(rest[0]).parent.absolute()))
        sys.argv = rest
        if accept:
            small.end_after_parsing()
        if accept and rest[0] != "main.py":  # who knows what it does
            compile(Path(rest[0]).read_text(), rest[0], "exec")
        else:
            runpy.run_path(rest[0], run_name="__main__")


def _notebook(connection: socket.socket, accept: bool) -> None:
    """Runs snippets in one namespace, one after the other; answers each with its exit status."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    sys.path.insert(0, os.getcwd())
    while content := connection.recv(1 << 20):
        snippet = json.loads(content)
        source = "\n" * (snippet["line"] - 1) + snippet["source"]  # tracebacks name its lines

        def run(source=source, path=snippet["path"]):
            code = compile(source, path, "exec")
            if accept:
                _import_ours(source, namespace)
            else:
                exec(code, namespace)

        connection.send(str(_status_of(run)).encode())


def _import_ours(source: str, namespace: dict[str, Any]) -> None:
    """Runs the imports from this repository and nothing else of a snippet."""
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom) else ""
        if re.match(r"(import|from) (egmae_jax|configs|benchmarks|tests)\b", text):
            exec(text, namespace)


if __name__ == "__main__":
    serve(sys.argv[1])
