"""Text in figures: line wrapping, and fallback fonts for East and South Asian scripts."""

import contextlib
from collections.abc import Iterator

import matplotlib
import rich.console
from matplotlib import font_manager
from rich.text import Text

# matplotlib's default font has no letters of East and South Asian scripts. Of each tuple, the first
# font that is installed is used for them.
_FALLBACKS = (
    ("Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Micro Hei",
     "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans",
     "Microsoft YaHei", "Yu Gothic", "MS Gothic"),
    ("Noto Sans CJK KR", "Apple SD Gothic Neo", "Malgun Gothic", "NanumGothic", "UnDotum"),
    ("Noto Sans Devanagari", "Lohit Devanagari", "Kohinoor Devanagari", "Nirmala UI", "Mangal"),
    ("Noto Sans Thai", "Loma", "Thonburi", "Leelawadee UI"),
    ("Arial Unicode MS",),
)  # fmt: skip


@contextlib.contextmanager
def use_fallback_fonts() -> Iterator[None]:
    """Lets figures fall back on other installed fonts; a context manager or decorator.

    If no font has a letter, matplotlib warns and draws a box.
    """
    installed = set(font_manager.get_font_names())
    fonts = (next((name for name in names if name in installed), None) for names in _FALLBACKS)
    family = [*matplotlib.rcParams["font.family"], *filter(None, fonts)]
    with matplotlib.rc_context({"font.family": family}):
        yield


def wrap(text: str, width: int, lines: int = 2) -> str:
    """Wraps text into lines, and ends it with '…' if it is too long.

    Lines are broken between words, or within a word that is longer than a line.

    Args:
        text: text to wrap.
        width: columns per line; East Asian letters take two columns.
        lines: largest number of lines.
    """
    terminal = rich.console.Console(width=width)
    broken = [line.plain.rstrip() for line in Text(text).wrap(terminal, width, overflow="fold")]
    if len(broken) > lines:
        last = Text(broken[lines - 1])
        last.truncate(width - 1)
        broken = [*broken[: lines - 1], f"{last.plain.rstrip()}…"]
    return "\n".join(broken)
