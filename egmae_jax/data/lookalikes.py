"""Names that look alike, and values that stand for none.

Two spellings of a class make two classes of one, and two spellings of a patient put his images into
training and test both. `key` is the same for names that differ by nothing a reader would go by.
"""

import collections
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
# Cyrillic and Greek small letters that fonts draw as Latin ones; and dashes, quotes.
_SAME = str.maketrans(
    "асеорхуіјѕԁһԛԝαοριυνκτ" + "ı" + "’‘`´ʼ" + "“”„" + "−",  # noqa: RUF001
    "aceopxyijsdhqwaopiuvkt" + "i" + "'''''" + '"""' + "-",
)
_SIGN = re.compile(r"(?:^|(?<=[\s_(,]))-(?=\d)")  # of a negative number
_BETWEEN = r"[-_\s]+"
_JOINTS = re.compile(rf"(?<=[^\W\d_]){_BETWEEN}(?=\w)|(?<=\w){_BETWEEN}(?=[^\W\d_])")
_GAPS = re.compile(rf"(?<=\d){_BETWEEN}(?=\d)")
_INVISIBLE = "\u115f\u1160\u2800"  # Hangul fillers, an empty Braille cell
_AROUND = re.compile(r"\s+(?=[^\w\s\0])|(?<=[^\w\s\0])\s+")  # spaces beside what is no letter
_NUMBER = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)")
_ZEROS_BEFORE = re.compile(r"(?<![\d.])0+(?=\d)")
_ZEROS_BEHIND = re.compile(r"(?<![\d.])(\d+)(?:\.0*|(\.\d*?[1-9])0+)(?![\d.])")


def key(name: str) -> str:
    """What a name is to a reader: equal keys are names that look alike.

    Not told apart are case, composed and decomposed letters and accents, letters that compatible
    forms or other alphabets write alike, invisible letters, spaces before, after and between,
    hyphens and underscores between letters, and ways to write a number (0, 00, 0.0, -0, +0; .5 and
    0,50). Told apart are -1 and 1, and what stands at the end (HER2+, HER2-).
    """
    text = unicodedata.normalize("NFKD", name).casefold()
    text = unicodedata.normalize("NFKD", text)
    text = "".join(
        "-" if unicodedata.category(x) == "Pd" else x
        for x in text
        if unicodedata.category(x) != "Cf"
        and not "\u0300" <= x <= "\u036f"
        and not "\ufe00" <= x <= "\ufe0f"
        and x not in _INVISIBLE
    )
    text = " ".join(text.translate(_SAME).split())
    if _NUMBER.fullmatch(text):
        return _number(text.replace(",", "."))
    text = _SIGN.sub("\0", text)  # no hyphen between words
    text = _GAPS.sub(" ", _AROUND.sub("", _JOINTS.sub("", text))).strip("_ ")
    text = _ZEROS_BEHIND.sub(r"\1\2", _ZEROS_BEFORE.sub("", text))
    return text.replace("\0", "-")


def _number(text: str) -> str:
    """The shortest way to write a decimal number."""
    whole, _, fraction = text.lstrip("+-").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    shortest = f"{whole}.{fraction}" if fraction else whole
    return f"-{shortest}" if text.startswith("-") and shortest != "0" else shortest


def is_missing(value: str) -> bool:
    """Whether a value usually stands for a missing one: empty, nan, NA, None, ..."""
    return " ".join(unicodedata.normalize("NFKC", value).split()).casefold() in _MISSING


def groups(names: Iterable[str]) -> list[list[str]]:
    """The names that look alike, sorted, in lists of two or more."""
    by_key = collections.defaultdict(set)
    for name in names:
        by_key[key(name)].add(name)
    return sorted(sorted(alike) for alike in by_key.values() if len(alike) > 1)


def shown(names: Sequence[str]) -> str:
    """Names as they are and, where they hold more than ASCII, with these letters written out."""
    return " and ".join(repr(name) if name.isascii() else f"{name!r} ({name!a})" for name in names)
