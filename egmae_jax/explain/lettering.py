"""Names in figures: wrapped to a width, and in a font that has their letters."""

import contextlib
import functools
import re
import unicodedata
from collections.abc import Iterator

import matplotlib
from matplotlib import font_manager

# matplotlib's own font has no letters of East and South Asia. The first of each line that is on
# this machine helps out.
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
def fonts_of_all_letters() -> Iterator[None]:
    """Within it, or a function that it decorates, figures fall back on this machine's other fonts.

    matplotlib warns of a letter that none of them has, and draws a box.
    """
    _find_new_fonts()
    installed = set(font_manager.get_font_names())
    found = (next((name for name in names if name in installed), None) for names in _FALLBACKS)
    family = [*matplotlib.rcParams["font.family"], *filter(None, found)]
    with matplotlib.rc_context({"font.family": family}):
        yield


@functools.cache
def _find_new_fonts() -> None:
    """Makes fonts known that were installed after matplotlib listed those of this machine."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            with contextlib.suppress(OSError, RuntimeError):  # not of a kind that it can draw
                font_manager.fontManager.addfont(path)


def columns(text: str) -> int:
    """How many letters wide a text is; those of East Asia count two."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def wrap(text: str, width: int, lines: int = 2) -> str:
    """Text over at most so many lines of at most `width` columns; '…' where more is left out.

    Lines are broken between words where these fit, and within one that does not.
    """
    broken: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for token in re.findall(r"[^\s-]*-+|[^\s-]+|\s+", paragraph):
            if columns(line + token.rstrip()) > width:
                broken.extend([line.rstrip()] if line.strip() else [])
                *pieces, line = _pieces(token.lstrip(), width)
                broken.extend(pieces)
            elif line or token.strip():
                line += token
        broken.append(line.rstrip())
    if len(broken) <= lines:
        return "\n".join(broken)
    last = next(_pieces(broken[lines - 1], width - 1))
    return "\n".join([*broken[: lines - 1], f"{last}…"])


def _pieces(text: str, width: int) -> Iterator[str]:
    piece, taken = "", 0
    for letter in text:
        if taken + columns(letter) > width and piece:
            yield piece
            piece, taken = "", 0
        piece, taken = piece + letter, taken + columns(letter)
    yield piece
