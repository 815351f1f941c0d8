"""Contact sheets: thumbnails of images with their names, in pages of bounded size."""

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
_ROWS = 10  # of a page
_MOST_PAGES = 99
# All in pixels.
_TILE, _GAP = 144, 10
_FONT_SIZE, _LINE, _LETTER = 12, 15, 7.25  # the font is monospaced
_NAME_LINES = 2
_CELL = _TILE + _GAP
_BLOCK = _LINE + 6 + _TILE + (_NAME_LINES + 1) * _LINE + _GAP  # height of a row
_PAPER, _INK, _FAINT, _ALARM = "white", "black", "#555555", "#b00020"


class Section(NamedTuple):
    """Images that belong together on a sheet.

    Attributes:
        title: line above the images.
        indices: indices of the images in the data set.
        alarming: whether title and classes are written in red.
    """

    title: str
    indices: Sequence[int]
    alarming: bool = False


def pages(prepared: Prepared, sections: Iterable[Section]) -> Iterator[PIL.Image.Image]:
    """Draws sections in their order, as many in a row as fit, on 99 pages at most.

    Below each image stand its name, shortened in the middle if need be, its class and the official
    part it is in.

    Args:
        prepared: the data set.
        sections: what to draw; a section of more than `COLUMNS` images takes several rows.
    """
    rows = list(itertools.islice(_rows(sections), _MOST_PAGES * _ROWS))
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
            (title,) = fitted(printable(section.title), int(width / _LETTER), 1)
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
    name = fitted(printable(prepared.files[index]), letters, _NAME_LINES)
    label, part = prepared.classes[prepared.labels[index]], prepared.official[index]
    (caption,) = fitted(printable(f"{label} ({part})" if part else label), letters, 1)
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((left, top + _TILE), "\n".join(name), _FAINT, _font())
    top += _TILE + _NAME_LINES * _LINE
    draw.text((left, top), caption, _ALARM if alarming else _INK, _font())


def fitted(text: str, letters: int, lines: int) -> list[str]:
    """Breaks a text into lines of so many letters, without its middle if it is longer than all."""
    most = letters * lines
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"
    return [text[k : k + letters] for k in range(0, len(text), letters)] or [""]


@functools.cache
def _font() -> PIL.ImageFont.FreeTypeFont:
    """DejaVu Sans Mono, which matplotlib brings, for the letters that names are written in."""
    import matplotlib  # for a path: not where no sheet is drawn

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    return PIL.ImageFont.truetype(path, _FONT_SIZE)
