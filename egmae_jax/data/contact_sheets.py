"""Contact sheets: thumbnails of images with their names, in pages of bounded size."""

import bisect
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

from egmae_jax.core.markup import printable
from egmae_jax.data import images
from egmae_jax.data.prepare import Prepared

COLUMNS = 8
_TILE = 144  # pixels of a side
_GAP = 10  # pixels between tiles, and around them
_TEXT = 12  # pixels of the font's size
_LINE = 15  # pixels from line to line
_NAME_LINES = 2
_CELL = _TILE + _GAP
_BLOCK = _LINE + 6 + _TILE + (_NAME_LINES + 1) * _LINE + _GAP  # pixels of a row's height
_ROWS = 10  # of a page
_PAPER, _INK, _FAINT, _ALARM = "white", "black", "#555555", "#b00020"


class Section(NamedTuple):
    """Images that belong together on a sheet."""

    title: str
    indices: Sequence[int]  # of the images
    alarming: bool = False  # writes title and classes in red


def pages(prepared: Prepared, sections: Iterable[Section], most: int) -> Iterator[PIL.Image.Image]:
    """Draws sections, in their order and as many in a row as fit, on at most so many pages.

    Below each image stand its name, shortened in the middle if need be, its class and the official
    part it is in.

    Args:
        prepared: whose images they are.
        sections: what to draw; one of more than `COLUMNS` images takes several rows.
        most: pages.
    """
    rows = list(_rows(sections, most * _ROWS))
    for start in range(0, len(rows), _ROWS):
        yield _page(prepared, rows[start : start + _ROWS])


def _rows(sections: Iterable[Section], most: int) -> Iterator[list[Section]]:
    row: list[Section] = []
    made = 0
    for section in _blocks(sections):
        if row and sum(len(each.indices) for each in row) + len(section.indices) > COLUMNS:
            yield row
            row, made = [], made + 1
            if made == most:
                return
        row.append(section)
    if row:
        yield row


def _blocks(sections: Iterable[Section]) -> Iterator[Section]:
    """No more than `COLUMNS` images each."""
    for section in sections:
        for start in range(0, len(section.indices), COLUMNS):
            title = section.title if start == 0 else f"{section.title} (continued)"
            yield section._replace(title=title, indices=section.indices[start : start + COLUMNS])


def _page(prepared: Prepared, rows: Sequence[Sequence[Section]]) -> PIL.Image.Image:
    columns = max(sum(len(section.indices) for section in row) for row in rows)
    size = (columns * _CELL + _GAP, len(rows) * _BLOCK + _GAP)
    sheet = PIL.Image.new("RGB", size, _PAPER)
    draw, font = PIL.ImageDraw.Draw(sheet), _font()
    for y, row in enumerate(rows):
        left, top = _GAP, y * _BLOCK + _GAP
        for section in row:
            width = len(section.indices) * _CELL - _GAP
            (title,) = _fitted(printable(section.title), width, 1, font)
            draw.text((left, top), title, _ALARM if section.alarming else _INK, font)
            draw.line((left, top + _LINE + 2, left + width, top + _LINE + 2), _FAINT)
            for index in section.indices:
                _draw_tile(sheet, draw, font, prepared, index, (left, top), section.alarming)
                left += _CELL
    return sheet


def _draw_tile(
    sheet: PIL.Image.Image,
    draw: PIL.ImageDraw.ImageDraw,
    font: PIL.ImageFont.FreeTypeFont,
    prepared: Prepared,
    index: int,
    corner: tuple[int, int],
    alarming: bool,
) -> None:
    left, top = corner[0], corner[1] + _LINE + 6
    image = PIL.ImageOps.contain(images.from_array(prepared.records.pixels(index)), (_TILE, _TILE))
    sheet.paste(image, (left + (_TILE - image.width) // 2, top + (_TILE - image.height) // 2))
    top += _TILE
    path = printable(prepared.files[index])
    lines = _fitted(path, _TILE, _NAME_LINES, font)
    if "…" in "".join(lines):  # the folder says less than the name
        lines = _fitted(PurePosixPath(path).name, _TILE, _NAME_LINES, font)
    for line in lines:
        draw.text((left, top), line, _FAINT, font)
        top += _LINE
    label = prepared.classes[prepared.labels[index]]
    if part := prepared.official[index]:
        label = f"{label} ({part})"
    (line,) = _fitted(printable(label), _TILE, 1, font)
    draw.text((left, top), line, _ALARM if alarming else _INK, font)


def _fitted(text: str, width: int, lines: int, font: PIL.ImageFont.FreeTypeFont) -> list[str]:
    """The text in at most so many lines, without its middle if it is longer."""
    whole = _broken(text, width, font)
    if len(whole) <= lines:
        return whole or [""]

    def shortened(kept: int) -> list[str]:
        tail = text[len(text) - kept // 2 :]
        return _broken(f"{text[: (kept + 1) // 2]}…{tail}", width, font)

    too_many = bisect.bisect(range(len(text)), lines, key=lambda kept: len(shortened(kept)))
    return shortened(too_many - 1)


def _broken(text: str, width: int, font: PIL.ImageFont.FreeTypeFont) -> list[str]:
    lines, taken = ([""] if text else []), 0.0
    for letter in text:
        wide = _width(letter, font)
        if lines[-1] and taken + wide > width:
            lines.append("")
            taken = 0.0
        lines[-1] += letter
        taken += wide
    return lines


@functools.cache
def _width(letter: str, font: PIL.ImageFont.FreeTypeFont) -> float:
    return font.getlength(letter)


@functools.cache
def _font() -> PIL.ImageFont.FreeTypeFont:
    """DejaVu, which matplotlib brings, for the letters that names are written in."""
    import matplotlib  # for a path: not where no sheet is drawn

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return PIL.ImageFont.truetype(path, _TEXT)
