"""The commands and snippets of the documentation run, cut to size; its links lead somewhere.

`% needs: data/busi runs/busi` (in README.md as an HTML comment) names what a page's first command
needs. The commands of this project in ```bash fences run one after the other, each in a process of
its own, whatever starts them on the page (`srun`, `nohup`). A ```python fence whose first line is
`# name.py` is that file; all others of a page are one program, which runs at the end. What only
installs is not run, nor what needs other machines, the network or a browser.
"""

import importlib.util
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from egmae_jax.run import config, default_config
from tests import REPOSITORY
from tests.docs.pages import Page, dead_links, pages
from tests.docs.runner import Runner

PAGES = pages()
# Languages of fences that would not be run, though a user may type what they hold.
FORBIDDEN = ("sh", "shell", "console", "shell-session", "zsh", "pycon", "python3", "ipython", "py")
# What a page's commands or snippets use that not every installation has.
EXTRAS = {"torch": "torch", "egmae export": "timm", "egmae compare": "timm"}
ONLY_PARSED = ("benchmarks.", "egmae demo", "egmae download")


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.stop()


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shells_are_bash_and_what_they_name_is_there(page: Page):
    shells = "\n".join(fence.text for fence in page.fences if fence.language == "bash")
    checked = subprocess.run(["bash", "-n"], input=shells, capture_output=True, text=True)
    assert not checked.stderr
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"'\.\[(\w[\w-]*)\]'", page.text))
    assert extras <= project["optional-dependencies"].keys()
    targets = re.findall(r"`make ([\w-]+)", page.prose) + re.findall(r"(?m)^make ([\w-]+)", shells)
    rules = re.findall(r"^([\w -]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) <= {name for rule in rules for name in rule.split()}
    tests = set(re.findall(r"pytest (?:-m slow )?(tests/[\w/.]+)", page.text))
    assert all((REPOSITORY / path).exists() for path in tests)
    fields = set(re.findall(r"`--config\.([\w.]+)", page.prose))
    assert fields <= config.flatten(default_config.get_config()).keys()


def prepare(page: Page, folder: Path) -> None:
    """Makes a folder look like a clone, with the files that a page shows."""
    folder.mkdir(exist_ok=True)
    for name in ("configs", "main.py"):
        (folder / name).symlink_to(REPOSITORY / name)
    for fence in page.fences:
        if fence.file:
            (folder / fence.file).write_text(fence.text)


def refusals(page: Page, folder: Path, runner: Runner) -> Iterator[str]:
    """Parses each command of a page and yields those that are not accepted."""
    prepare(page, folder)
    inline = (
        words if any(x.startswith("--") for x in words) else [*words, "--help"]
        for words in page.inline_commands
    )
    for command in (*page.commands, *inline):
        if command[1] in ("-c", "convert.py"):  # nothing to parse
            continue
        status, output = runner.run(command, folder, only_parsed=True)
        if status:
            yield f"{page.name}: {' '.join(command)} ended with status {status}:\n{output}"


@pytest.mark.essential
@pytest.mark.slow
def test_every_command_is_accepted(runner: Runner, tmp_path: Path):
    """Programs, flags, config fields and words behind a colon are known; nothing is run."""
    wrong = [
        refusal
        for number, page in enumerate(PAGES)
        for refusal in refusals(page, tmp_path / str(number), runner)
    ]
    assert not wrong, "\n".join(wrong)


WRONG = """
python main.py --config=configs/busi.py:gpu --workdir=w
python main.py --config=configs/busi.py --config.data.dri=x --workdir=w
python main.py --config=configs/busi.py --config.data.image_size=100 --workdir=w
egmae sweep --config=configs/sweeps/epochs.py:bussi --out=w
egmae report --workdri=w
egmae nothing
python -m egmae_jax.nothing
"""


@pytest.mark.essential
@pytest.mark.slow
def test_a_wrong_command_is_not_accepted(runner: Runner, tmp_path: Path):
    page = Page(tmp_path / "page.md")
    page.path.write_text(f"```bash{WRONG}```\n")
    assert len(list(refusals(page, tmp_path / "folder", runner))) == len(page.commands) == 7


def run(command: list[str], folder: Path, runner: Runner) -> None:
    """Runs a command of a page, which must succeed."""
    # The networks are so small that they have other layers.
    words = [x for x in command if not x.startswith("--layer=")]
    words = [re.sub(r"(?<!\w)/share\b", f"{folder}/share", x) for x in words]
    only_parsed = any(name in " ".join(words) for name in ONLY_PARSED)
    status, output = runner.run(words, folder, only_parsed=only_parsed)
    if status:
        tail = "\n".join(output.splitlines()[-25:])
        pytest.fail(f"{' '.join(command)} ended with status {status}:\n{tail}", pytrace=False)


@pytest.fixture(scope="module")
def provide(runner: Runner, tmp_path_factory):
    """Makes what a page needs in a folder: a data set, weights, an image or a finished run."""
    finished = tmp_path_factory.mktemp("finished")
    (finished / "main.py").symlink_to(REPOSITORY / "main.py")

    def make(name: str, folder: Path) -> None:
        path = folder / name.removeprefix("/")
        if path.parent.name != "runs":
            write(path, runner)
            return
        made = finished / "runs" / path.name
        if not made.exists():
            write(finished / "data" / "busi", runner)
            command = ["python", "main.py", "--config=configs/busi.py"]
            command += ["--config.data.dir=data/busi", f"--workdir=runs/{path.name}"]
            run(command, finished, runner)
        shutil.copytree(made, path)

    return make


def write(path: Path, runner: Runner) -> None:
    """Writes an image, weights of the small networks or a data set."""
    program = "import pathlib; from tests.docs import trees; trees.make(pathlib.Path(PATH))"
    program = program.replace("PATH", repr(str(path)))
    run(["python", "-c", program], REPOSITORY, runner)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_is_run(page: Page, runner: Runner, provide, tmp_path: Path):
    """From top to bottom, to the first command that fails."""
    for name, library in EXTRAS.items():
        if name in page.text and not importlib.util.find_spec(library):
            pytest.skip(f"{library} is not installed")
    prepare(page, tmp_path)
    for name in page.needs:
        provide(name, tmp_path)
    for command in page.commands:
        run(command, tmp_path, runner)
    snippets = [x.text for x in page.fences if x.language == "python" and not x.file]
    run(["python", "-c", "\n".join(snippets)], tmp_path, runner)
