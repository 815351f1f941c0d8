"""The pages of the documentation: their fences, this project's commands in them, their links."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from tests import REPOSITORY

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}|:{3,})(?P<info>[^`]*)$")
_NEEDS = re.compile(r"^(?:%|<!--) needs:(?P<names>.*?)(?:-->)?$", re.MULTILINE)
_FILE = re.compile(r"^# (?P<name>[\w./-]+\.py)$")
# A command of this project, also behind `srun` or within quotes.
_COMMAND = re.compile(
    r"(?<![\w.=-])(?:python3? (?:main\.py|-c|[\w/]+\.py|-m (?:egmae_jax|benchmarks)[\w.]*)|egmae)"
    r"(?: .*)?$"
)
_INLINE = re.compile(r"(?<!`)`(?P<text>(?:python3? (?:-m|main)|egmae )[^`]+)`")
_LINK = re.compile(r"\[[^]]*]\((?P<target>[^()\s]+(?:\([^()]*\))?[^()\s]*)\)")


class Fence(NamedTuple):
    """The code between two lines of backticks."""

    language: str
    line: int  # of the first line of code
    text: str

    @property
    def file(self) -> str | None:
        """The Python file that a comment in the first line names."""
        match = _FILE.match(self.text.partition("\n")[0])
        return match["name"] if match else None


class Page(NamedTuple):
    """A page in Markdown."""

    path: Path

    @property
    def name(self) -> str:
        """Path of the page in the repository."""
        return os.path.relpath(self.path, REPOSITORY)

    @property
    def text(self) -> str:
        """The whole page."""
        return self.path.read_text()

    @property
    def needs(self) -> list[str]:
        """Files and folders that must be there before the first command."""
        names = [name for match in _NEEDS.finditer(self.text) for name in match["names"].split()]
        return [name for name in names if name != "nothing"]

    @property
    def fences(self) -> list[Fence]:
        """The fences of code, of any language, also within directives."""
        return list(_fences(self.text))

    @property
    def prose(self) -> str:
        """The page with empty lines for the code of its fences."""
        lines = self.text.splitlines()
        for fence in self.fences:
            count = len(fence.text.splitlines())
            lines[fence.line - 1 : fence.line - 1 + count] = [""] * count
        return "\n".join(lines)

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of this project in the fences, in their order."""
        shells = [fence.text for fence in self.fences if fence.language == "bash"]
        return [words for text in shells for words in _commands(text)]

    @property
    def inline_commands(self) -> list[list[str]]:
        """The words of each command of this project that the prose quotes whole."""
        quoted = (" ".join(match["text"].split()) for match in _INLINE.finditer(self.prose))
        return [words for text in quoted if "..." not in text for words in _commands(text)]


def pages() -> list[Page]:
    """All pages, but those that are made when the site is built."""
    paths = [path for path in (REPOSITORY / "docs").rglob("*.md") if "_build" not in path.parts]
    return [Page(REPOSITORY / "README.md"), *map(Page, sorted(paths))]


def _fences(text: str) -> Iterator[Fence]:
    opened: list[re.Match[str]] = []
    first, within = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        match = _FENCE.match(line)
        in_code = bool(opened) and not opened[-1]["info"].startswith("{")
        closes = match and not match["info"] and opened
        if closes and match["fence"].startswith(opened[-1]["fence"]):
            closed = opened.pop()
            if in_code:
                yield Fence(closed["info"].strip(), first, "\n".join(within))
        elif in_code:
            within.append(line.removeprefix(opened[-1]["indent"]))
        elif match:
            opened.append(match)
            first, within = number + 1, []


def _commands(shell: str) -> Iterator[list[str]]:
    for line in re.sub(r"\\\n\s*", "", shell).splitlines():
        if match := _COMMAND.search(line):
            words = shlex.shlex(match[0], posix=True, punctuation_chars=True)
            words.whitespace_split = True
            command = list(words)
            ends = [i for i, word in enumerate(command) if word and set(word) <= set("();<>|&")]
            yield command[: min(ends, default=None)]


# --- Links ----------------------------------------------------------------------------------------


def dead_links(page: Page) -> list[str]:
    """The links of a page that lead to no file of the repository, or to no heading of its own."""
    dead = []
    for number, line in enumerate(page.prose.splitlines(), 1):
        for match in _LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            target, _, anchor = unquote(match["target"]).partition("#")
            if re.match(r"\w+:|/", target):
                continue
            path = (page.path.parent / target) if target else page.path
            if not path.exists() or (
                anchor and path.suffix == ".md" and anchor not in _anchors(Page(path))
            ):
                dead.append(f"{page.name}:{number}: {match['target']}")
    return dead


def _anchors(page: Page) -> set[str]:
    """GitHub's anchors of the headings, which are MyST's, too, and MyST's own `(name)=`."""
    anchors: set[str] = set()
    for title in re.findall(r"^#+ +(.*?)\s*$", page.prose, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", title)  # the text of links
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        repeated = sum(each == slug or each.startswith(f"{slug}-") for each in anchors)
        anchors.add(f"{slug}-{repeated}" if slug in anchors else slug)
    return anchors | set(re.findall(r"^\((\S+)\)=$", page.text, re.MULTILINE))
