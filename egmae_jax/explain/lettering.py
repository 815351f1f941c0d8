"""Names in figures: wrapped to a width, and in a font that has their letters."""

import contextlib
from collections.abc import Iterator

import matplotlib
import rich.console
from matplotlib import font_manager
from rich.text import Text

# matplotlib's own font has no letters of East and South Asia. The first font of each line that is
# installed is used for them.
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
    """Lets figures fall back on other installed fonts, within a block or a decorated function.

    matplotlib warns of a letter that none of them has, and draws a box.
    """
    installed = set(font_manager.get_font_names())
    fonts = (next((name for name in names if name in installed), None) for names in _FALLBACKS)
    family = [*matplotlib.rcParams["font.family"], *filter(None, fonts)]
    with matplotlib.rc_context({"font.family": family}):
        yield


def wrap(text: str, width: int, lines: int = 2) -> str:
    """Breaks text into at most `lines` lines of `width` columns; '…' where more is left out.

    Letters of East Asia take two columns. Lines are broken between words where these fit, and
    within a word that does not.
    """
    terminal = rich.console.Console(width=width)
    broken = [line.plain.rstrip() for line in Text(text).wrap(terminal, width, overflow="fold")]
    if len(broken) > lines:
        last = Text(broken[lines - 1])
        last.truncate(width - 1)
        broken = [*broken[: lines - 1], f"{last.plain.rstrip()}…"]
    return "\n".join(broken)
