"""CSV tables of images, with the separators and encodings that spreadsheet programs write."""

import codecs
import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from egmae_jax.core.errors import shorten_list
from egmae_jax.data.datasets.base import DataError

# Accepted names of the parts of a data set, in the form that `column_key` returns.
_PART_NAMES = {
    "train": ("train", "training", "trainset", "trainingset", "trn"),
    "validation": ("validation", "valid", "val", "validationset", "validset", "valset", "dev"),
    "test": ("test", "testing", "testset", "testingset", "tst"),
}


def column_key(name: str) -> str:
    """Returns the NFKC form of a name, case-folded, with letters and digits only, for lookups."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in plain if letter.isalnum())


def part_of(name: str) -> str | None:
    """Returns the part that a name stands for: 'train', 'validation', 'test', or None."""
    return next((part for part, keys in _PART_NAMES.items() if column_key(name) in keys), None)


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Reads a CSV file with values separated by commas, semicolons or tabs.

    The encoding is UTF-8 or, with a byte order mark, UTF-16.

    Returns:
        The column names, and the line number and values of each row. Names and values are stripped
        of spaces.

    Raises:
        DataError: the file is not a CSV file of this kind, or a row has too few or too many values.
    """
    encoded = path.read_bytes()
    is_utf16 = encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = encoded.decode("utf-16" if is_utf16 else "utf-8-sig")
        header = text.lstrip().partition("\n")[0]
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=max(",;\t", key=header.count),
            strict=True,
            skipinitialspace=True,
        )
        rows = [(reader.line_num, [value.strip() for value in row]) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is not a CSV file in UTF-8 ({error}); save it in this format."
        ) from None
    names = rows[0][1] if rows else []
    for number, values in rows:
        if len(values) != len(names):
            raise DataError(
                f"{path}, line {number} has {len(values)} values, but its first line names "
                f"{len(names)} columns: {shorten_list(names)}."
            )
    return names, rows[1:]


def read_columns(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the line number and {column: value} of each row of a CSV file; see `read_table`.

    Args:
        path: path of the CSV file.
        columns: names of the columns that the file must have.

    Raises:
        DataError: a column is missing, or `read_table` cannot read the file.
    """
    names, rows = read_table(path)
    if missing := [name for name in columns if name not in names]:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; its columns are "
            f"{', '.join(names) or 'none'}."
        )
    for number, values in rows:
        yield number, dict(zip(names, values, strict=True))
