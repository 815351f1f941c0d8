"""Detects names that look alike, and values that mean "missing".

Two spellings of one class would become two classes, and two spellings of one patient could put that
patient's images into both training and test. `key` maps such spellings to one string.
"""

import collections
import decimal
import re
import unicodedata
from collections.abc import Iterable, Sequence

# Values that pandas reads as missing by default, and other common notations.
_MISSING = frozenset(
    {
        *("", "nan", "-nan", "none", "null", "na", "n/a", "<na>", "#n/a", "#na", "nat", "nil"),
        *("1.#qnan", "-1.#ind", "#n/a n/a", "?"),
    }
)
# Small Cyrillic and Greek letters that look like Latin letters, and variants of the quote.
_SAME = str.maketrans("асеорхуіјѕԁһԛԝαοριυνκτı’‘`´", "aceopxyijsdhqwaopiuvkti''''")  # noqa: RUF001
_NUMBER = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)")
_MINUS = re.compile(r"(?:^|(?<=[\s_(,]))-(?=\d)")
_SEPARATOR = r"[-_\s]+"
_BESIDE_LETTER = re.compile(rf"(?<=[^\W\d_]){_SEPARATOR}(?=\w)|(?<=\w){_SEPARATOR}(?=[^\W\d_])")
_BESIDE_SIGN = re.compile(r"\s+(?=[^\w\s\0])|(?<=[^\w\s\0])\s+")
_EXACT = decimal.Context(prec=1000)  # more digits than any name has
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")


def key(name: str) -> str:
    """Returns a string that is equal for names that look alike.

    Names look alike if they differ only in case, accents, composition or compatibility forms of
    letters, similar letters of other alphabets, invisible characters, separators (spaces, hyphens
    and underscores) beside letters, or the notation of a number (0, 00, 0.0). The following do not:
    -1 and 1, 1-2 and 12, and names with different signs at the end (HER2+, HER2-).
    """
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    text = "".join(
        "-" if unicodedata.category(x) == "Pd" else x
        for x in text
        if unicodedata.category(x) not in ("Cf", "Mn")
    )
    text = " ".join(text.translate(_SAME).split())
    if _NUMBER.fullmatch(text):
        number = decimal.Decimal(text.replace(",", ".")).normalize(_EXACT)
        return "0" if number.is_zero() else f"{number:f}"
    text = _MINUS.sub("\0", text)  # protects minus signs, which are not separators
    text = _LEADING_ZEROS.sub("", _BESIDE_SIGN.sub("", _BESIDE_LETTER.sub("", text)))
    return text.replace("\0", "-")


def is_missing(value: str) -> bool:
    """Whether a text usually means a missing value, such as '', 'nan', 'NA' or 'None'."""
    return " ".join(unicodedata.normalize("NFKC", value).split()).casefold() in _MISSING


def groups(names: Iterable[str]) -> list[list[str]]:
    """Returns the sets of two or more names that look alike, as sorted lists."""
    by_key = collections.defaultdict(set)
    for name in names:
        by_key[key(name)].add(name)
    return sorted(sorted(alike) for alike in by_key.values() if len(alike) > 1)


def spelled_out(names: Sequence[str]) -> str:
    """Joins names with ' and ', and adds the escaped form of those that are not plain ASCII."""
    return " and ".join(repr(name) if name.isascii() else f"{name!r} ({name!a})" for name in names)
