"""Names that look alike, and values that stand for none.

Two spellings of a class make two classes of one, and two spellings of a patient put one person's
images into training and test both. `key` is the same for names that differ by nothing a reader
would go by.
"""

import collections
import decimal
import re
import unicodedata
from collections.abc import Iterable, Sequence

# What pandas reads as missing by default, and what people write for it.
_MISSING = frozenset(
    {
        *("", "nan", "-nan", "none", "null", "na", "n/a", "<na>", "#n/a", "#na", "nat", "nil"),
        *("1.#qnan", "-1.#ind", "#n/a n/a", "?"),
    }
)
# Cyrillic and Greek small letters that fonts draw as Latin ones; and quotes.
_SAME = str.maketrans("асеорхуіјѕԁһԛԝαοριυνκτı’‘`´", "aceopxyijsdhqwaopiuvkti''''")  # noqa: RUF001
_NUMBER = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)")
_MINUS = re.compile(r"(?:^|(?<=[\s_(,]))-(?=\d)")
_BETWEEN = r"[-_\s]+"
_BESIDE_LETTER = re.compile(rf"(?<=[^\W\d_]){_BETWEEN}(?=\w)|(?<=\w){_BETWEEN}(?=[^\W\d_])")
_BESIDE_SIGN = re.compile(r"\s+(?=[^\w\s\0])|(?<=[^\w\s\0])\s+")
_EXACT = decimal.Context(prec=1000)  # digits: more than a name has
_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")  # before a number


def key(name: str) -> str:
    """What a name is to a reader: equal keys are names that look alike.

    Alike are names that differ by case, composed or decomposed letters and accents, letters of
    compatible forms or other alphabets that look the same, invisible letters, spaces, hyphens and
    underscores beside letters, or by how a number is written (0, 00, 0.0). Not alike are -1 and 1,
    1-2 and 12, and names with other signs at the end (HER2+, HER2-).
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
    text = _MINUS.sub("\0", text)  # no hyphen between words
    text = _ZEROS.sub("", _BESIDE_SIGN.sub("", _BESIDE_LETTER.sub("", text)))
    return text.replace("\0", "-")


def is_missing(value: str) -> bool:
    """Whether a value usually stands for a missing one: empty, nan, NA, None, ..."""
    return " ".join(unicodedata.normalize("NFKC", value).split()).casefold() in _MISSING


def groups(names: Iterable[str]) -> list[list[str]]:
    """Lists the names that look alike, sorted, in lists of two or more."""
    by_key = collections.defaultdict(set)
    for name in names:
        by_key[key(name)].add(name)
    return sorted(sorted(alike) for alike in by_key.values() if len(alike) > 1)


def spelled_out(names: Sequence[str]) -> str:
    """Names as they are and, where they hold more than ASCII, with these letters written out."""
    return " and ".join(repr(name) if name.isascii() else f"{name!r} ({name!a})" for name in names)
