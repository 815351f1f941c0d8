"""Contact sheets: pages of thumbnails with the names of the images."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

from egmae_jax.core.markup import printable
from egmae_jax.data import images
from egmae_jax.data.prepare import Prepared

COLUMNS = 8
_ROWS = 10  # rows per page
_MAX_PAGES = 99
_NAME_LINES = 2  # lines of text for a file name
# Lengths in pixels: _LETTER is the width of a letter in a monospaced font, _CELL the width of a
# column, and _BLOCK the height of a row.
_TILE, _GAP = 144, 10
_FONT_SIZE, _LINE, _LETTER = 12, 15, 7.25
_CELL = _TILE + _GAP
_BLOCK = _LINE + 6 + _TILE + (_NAME_LINES + 1) * _LINE + _GAP
_PAPER, _INK, _FAINT, _ALARM = "white", "black", "#555555", "#b00020"


class Section(NamedTuple):
    """Images under one title on a contact sheet.

    Attributes:
        title: line of text above the images.
        indices: indices of the images in the data set.
        alarming: whether the title and the classes are written in red.
    """

    title: str
    indices: Sequence[int]
    alarming: bool = False


def pages(prepared: Prepared, sections: Iterable[Section]) -> Iterator[PIL.Image.Image]:
    """Draws sections in the given order, as many per row as fit, on at most 99 pages.

    The name of each image, shortened in the middle if it is too long, its class and its official
    part are written below it.

    Args:
        prepared: data set of the images.
        sections: sections to draw; one of more than `COLUMNS` images takes several rows.
    """
    rows = list(itertools.islice(_rows(sections), _MAX_PAGES * _ROWS))
    for start in range(0, len(rows), _ROWS):
        yield _page(prepared, rows[start : start + _ROWS])


def _rows(sections: Iterable[Section]) -> Iterator[list[Section]]:
    row: list[Section] = []
    for section in sections:
        for start in range(0, len(section.indices), COLUMNS):
            title = section.title if start == 0 else f"{section.title} (continued)"
            indices = section.indices[start : start + COLUMNS]
            if sum(len(each.indices) for each in row) + len(indices) > COLUMNS:
                yield row
                row = []
            row.append(Section(title, indices, section.alarming))
    if row:
        yield row


def _page(prepared: Prepared, rows: Sequence[Sequence[Section]]) -> PIL.Image.Image:
    columns = max(sum(len(section.indices) for section in row) for row in rows)
    size = (columns * _CELL + _GAP, len(rows) * _BLOCK + _GAP)
    sheet = PIL.Image.new("RGB", size, _PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        left, top = _GAP, y * _BLOCK + _GAP
        for section in row:
            width = len(section.indices) * _CELL - _GAP
            (title,) = fit_text(printable(section.title), int(width / _LETTER), 1)
            draw.text((left, top), title, _ALARM if section.alarming else _INK, _font())
            draw.line((left, top + _LINE + 2, left + width, top + _LINE + 2), _FAINT)
            for index in section.indices:
                _draw_tile(sheet, prepared, index, (left, top + _LINE + 6), section.alarming)
                left += _CELL
    return sheet


def _draw_tile(
    sheet: PIL.Image.Image, prepared: Prepared, index: int, corner: tuple[int, int], alarming: bool
) -> None:
    left, top = corner
    image = PIL.ImageOps.contain(images.from_array(prepared.records.pixels(index)), (_TILE, _TILE))
    sheet.paste(image, (left + (_TILE - image.width) // 2, top + (_TILE - image.height) // 2))
    letters = int(_TILE / _LETTER)
    name = fit_text(printable(prepared.files[index]), letters, _NAME_LINES)
    label, part = prepared.classes[prepared.labels[index]], prepared.official[index]
    (caption,) = fit_text(printable(f"{label} ({part})" if part else label), letters, 1)
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((left, top + _TILE), "\n".join(name), _FAINT, _font())
    top += _TILE + _NAME_LINES * _LINE
    draw.text((left, top), caption, _ALARM if alarming else _INK, _font())


def fit_text(text: str, letters: int, lines: int) -> list[str]:
    """Breaks a text into lines; replaces its middle by an ellipsis if it is too long.

    Args:
        text: text to break.
        letters: number of letters per line.
        lines: largest number of lines.
    """
    limit = letters * lines
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[len(text) - (limit - 1) // 2 :]}"
    return [text[k : k + letters] for k in range(0, len(text), letters)] or [""]


@functools.cache
def _font() -> PIL.ImageFont.FreeTypeFont:
    """Returns DejaVu Sans Mono from matplotlib, which has the letters of many alphabets."""
    import matplotlib  # slow to import, so only if a sheet is drawn

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    return PIL.ImageFont.truetype(path, _FONT_SIZE)
