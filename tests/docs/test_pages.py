"""Every command and every snippet of the documentation is run, in a sandbox that is cut to size.

A page's ```bash fences are typed into a shell one command after the other, its ```python fences are
one notebook; `% needs: data/busi runs/busi` (in README.md as an HTML comment) names what must be
there before. A fence whose first line is `# name.py` is also written to that file, and a script is
run where a command names it. A command must end with status 0, or as `# exit status 3` behind it
says, and so must what it leaves in the background. Commands within the text are only parsed.

Not carried out: installing, and what needs other machines or the network (programs.py); joining of
hosts, tests of `pytest`, `benchmarks.soak`, the measurements of `benchmarks.gpu`, most variants
of a sweep, the report at a run's end; the same run a second time (small.py).
"""

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import Command, Page, commands, dead_links, pages
from tests.docs.sandbox import Sandbox, Server

PAGES = pages()
# Languages of fences that would not be run, though a user may type what they hold.
FORBIDDEN = ("sh", "shell", "console", "shell-session", "zsh", "pycon", "python3", "ipython", "py")
# What pages ask for that not every installation has.
EXTRAS = {
    "egmae_jax.demo": "nicegui",
    "egmae demo": "nicegui",
    "benchmarks.": "torch",
    "timm": "timm",
    "onnx": "onnx",
}


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Runs Python, of all pages that this process tests."""
    with tempfile.TemporaryDirectory(prefix="docs") as folder:
        started = Server(Path(folder))
        yield started
        started.stop()


def problems(page: Page, sandbox: Sandbox) -> Iterator[str]:
    """Runs a page from top to bottom and yields what goes wrong."""
    if any(fence.text.startswith("git clone") for fence in page.fences):
        sandbox.run("cd ..")  # which then makes the folder that the page goes into
    for fence in page.fences:
        if fence.language not in ("bash", "python"):
            continue
        if fence.file:
            sandbox.write(fence.file, fence.text)
        if fence.language == "python":
            status, output = sandbox.run_snippet(page, fence.line, fence.text)
            if status:
                yield describe(page, Command(fence.line, fence.text), status, output)
        elif not fence.file:
            for command in commands(fence):
                yield from problem(page, command, sandbox)


def problem(page: Page, command: Command, sandbox: Sandbox) -> Iterator[str]:
    """Runs a command and yields what goes wrong."""
    status, output = sandbox.run(command.text)
    failed = sandbox.failed()
    # Where commands are only accepted, those that are themselves have no files to work on.
    wrong = status != command.status and not sandbox.accept
    if wrong or (failed and not command.status):
        yield describe(page, command, status, f"{output}\nfailed: {failed}")


def describe(page: Page, command: Command, status: int, output: str) -> str:
    """What a failure's message says."""
    tail = "\n".join(output.splitlines()[-25:])
    place = f"{page.name}:{command.line}"
    return f"{place} ended with status {status}:\n{command.text}\n--- printed\n{tail}\n"


def test_all_code_is_of_a_language_that_is_run():
    wrong = [
        f"{page.name}:{fence.line}: {fence.language}"
        for page in PAGES
        for fence in page.fences
        if fence.language in FORBIDDEN
    ]
    assert not wrong, "\n".join(wrong)


def test_links_lead_to_files_and_headings():
    dead = [link for page in PAGES for link in dead_links(page)]
    assert not dead, "\n".join(dead)


@pytest.mark.essential
@pytest.mark.slow
def test_every_command_is_accepted(server: Server, tmp_path: Path):
    """Programs, flags, config fields and presets are known, values in order; nothing is run."""
    found: list[str] = []
    for number, page in enumerate(PAGES):
        with Sandbox(tmp_path / str(number), server, tmp_path, accept=True) as sandbox:
            found += problems(page, sandbox)
            fields = []
            for command in page.inline:
                if command.text.startswith("--config."):
                    fields.append(command.text.removeprefix("--config.").partition("=")[0])
                else:
                    found += problem(page, command, sandbox)
            known = Command(1, f"python -m tests.docs.fields {' '.join(fields)}")
            found += problem(page, known, sandbox)
    assert not found, "\n".join(found)


WRONG = """
```bash
python main.py --config=configs/busi.py:gpu --workdir=w
python main.py --config=configs/busi.py --config.data.dri=x --workdir=w
python main.py --config=configs/busi.py --config.data.image_size=100 --workdir=w
python -m egmae_jax.sweep --config=configs/sweeps/epochs.py:bussi --out=w
python -m egmae_jax.report --workdri=w
egmae report --workdri=w
egmae train --config=configs/busi.py --config.data.dri=x --workdir=w
egmae nothing
python -m egmae_jax.nothing
pip install -e '.[nothing]'
make nothing
curl example.org
```
```python
from egmae_jax import nothing
```
"""
FAILING = """
```bash
python -c 'raise SystemExit(3)'  # exit status 3
test -e nothing  # fails
sh -c 'sleep .1; python -c "raise SystemExit(3)"' >log 2>&1 &  # fails
```
"""


@pytest.mark.parametrize(("text", "accept"), [(WRONG, True), (FAILING, False)])
def test_what_fails_is_told(text, accept, server, tmp_path):
    page = Page(tmp_path / "page.md")
    page.path.write_text(text)
    with Sandbox(tmp_path / "sandbox", server, tmp_path, accept=accept) as sandbox:
        found = "".join(problems(page, sandbox))
    for number, line in enumerate(text.splitlines(), 1):
        wrong = line.startswith("`") or not line or "exit status" in line
        assert (f"page.md:{number} ended" in found) != wrong, found


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_is_run(page: Page, server: Server, tmp_path: Path, tmp_path_factory):
    """From top to bottom, to the first command that fails."""
    text = "\n".join(fence.text for fence in page.fences)
    for name, library in EXTRAS.items():
        if name in text and not importlib.util.find_spec(library):
            pytest.skip(f"{library} is not installed")
    shared = tmp_path_factory.getbasetemp()
    runs = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "docs_runs"
    runs.mkdir(exist_ok=True)
    with Sandbox(tmp_path / "sandbox", server, runs, accept=False) as sandbox:
        for name in sorted(page.needs):  # data before runs
            sandbox.provide(name)
        if found := next(problems(page, sandbox), None):
            pytest.fail(found, pytrace=False)
