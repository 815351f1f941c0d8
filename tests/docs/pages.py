"""The pages of the documentation: their commands and snippets, their links."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

REPOSITORY = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}|:{3,})(?P<info>[^`]*)$")
_NEEDS = re.compile(r"^(?:%|<!--) needs:(?P<names>.*?)(?:-->)?$")
_FILE = re.compile(r"^# (?P<name>[\w./-]+\.\w+)$")
_EXIT_STATUS = re.compile(r"# exit status (?P<status>\d+)")
_INLINE = re.compile(
    r"(?<!`)`(?P<text>(?:(?:python3?|egmae|pytest|make|pip|tensorboard) |--config\.)[^`]+)`"
)
_NAME = re.compile(r"python (-m [\w.]+|main\.py)|egmae \w+")
_LINK = re.compile(r"\[[^]]*]\((?P<target>[^()\s]+(?:\([^()]*\))?[^()\s]*)\)")


class Fence(NamedTuple):
    """What stands between two lines of backticks."""

    language: str
    line: int  # of the first line within
    text: str

    @property
    def file(self) -> str | None:
        """The file that a comment on top says it is; of a script, on the line after `#!`."""
        lines = [line for line in self.text.splitlines() if not line.startswith("#!")]
        match = _FILE.match(lines[0]) if lines else None
        return match["name"] if match else None


class Command(NamedTuple):
    """What a shell takes at once: a line, or several where it goes on."""

    line: int
    text: str

    @property
    def status(self) -> int:
        """The exit status that a comment says it ends with, else 0."""
        match = _EXIT_STATUS.search(self.text)
        return int(match["status"]) if match else 0


class Page(NamedTuple):
    """A page in Markdown."""

    path: Path

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return os.path.relpath(self.path, REPOSITORY)

    @property
    def needs(self) -> list[str]:
        """Files and folders that must be there before the first command."""
        matches = map(_NEEDS.match, self.path.read_text().splitlines())
        found = [name for match in matches if match for name in match["names"].split()]
        return [name for name in found if name != "nothing"]

    @property
    def inline(self) -> list[Command]:
        """Whole commands within the text, and flags of configs."""
        text = _without_fences(self.path.read_text())
        matches = (match for match in _INLINE.finditer(text) if "..." not in match["text"])
        found = []
        for match in matches:
            command = " ".join(match["text"].split())
            if _NAME.fullmatch(command):  # only that is meant
                command += " --help"
            found.append(Command(text.count("\n", 0, match.start()) + 1, command))
        return found

    @property
    def fences(self) -> list[Fence]:
        """Those of code, of any language."""
        return list(_fences(self.path.read_text()))


def pages() -> list[Page]:
    """All pages, but those that are made when the site is built."""
    found = [path for path in (REPOSITORY / "docs").rglob("*.md") if "_build" not in path.parts]
    return [Page(REPOSITORY / "README.md"), *map(Page, sorted(found))]


def _fences(text: str) -> Iterator[Fence]:
    """Those of code, also within directives."""
    opened: list[re.Match[str]] = []
    first, within = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        match = _FENCE.match(line)
        in_code = bool(opened) and not opened[-1]["info"].startswith("{")
        if (
            opened
            and match
            and not match["info"]
            and match["fence"].startswith(opened[-1]["fence"])
        ):
            closed = opened.pop()
            if in_code:
                yield Fence(closed["info"].strip(), first, "\n".join(within))
        elif in_code:
            within.append(line.removeprefix(opened[-1]["indent"]))
        elif match:
            opened.append(match)
            first, within = number + 1, []


def commands(fence: Fence) -> Iterator[Command]:
    """The commands of a fence in bash, each as long as bash asks for more."""
    pending: list[str] = []
    for number, line in enumerate(fence.text.splitlines(), fence.line):
        pending.append(line)
        text = "\n".join(pending)
        if line.endswith("\\") or not _is_whole(text):
            continue
        if any(part.strip() and not part.lstrip().startswith("#") for part in pending):
            yield Command(number - len(pending) + 1, text)
        pending = []
    if pending:
        raise ValueError(f"line {fence.line}: bash does not understand\n{fence.text}")


def _is_whole(text: str) -> bool:
    done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stderr  # it warns of a here-document that goes on


# --- Links ----------------------------------------------------------------------------------------


def dead_links(page: Page) -> list[str]:
    """The links of a page that lead to no file of the repository, or to no heading of its own."""
    dead = []
    for number, line in enumerate(_without_fences(page.path.read_text()).splitlines(), 1):
        for match in _LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            target, _, anchor = unquote(match["target"]).partition("#")
            if re.match(r"\w+:|/", target):
                continue
            path = (page.path.parent / target) if target else page.path
            if not path.exists() or (
                anchor and path.suffix == ".md" and anchor not in _anchors(path.read_text())
            ):
                dead.append(f"{page.name}:{number}: {match['target']}")
    return dead


def _without_fences(text: str) -> str:
    """The same lines, those of fences empty."""
    lines = text.splitlines()
    for fence in _fences(text):
        count = len(fence.text.splitlines())
        lines[fence.line - 1 : fence.line - 1 + count] = [""] * count
    return "\n".join(lines)


def _anchors(text: str) -> set[str]:
    """GitHub's of the headings, which are MyST's, too, and MyST's own `(name)=`."""
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.*?)\s*$", _without_fences(text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", title)  # the text of links
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        repeated = sum(each == slug or each.startswith(f"{slug}-") for each in found)
        found.add(f"{slug}-{repeated}" if slug in found else slug)
    return found | set(re.findall(r"^\((\S+)\)=$", text, re.MULTILINE))
