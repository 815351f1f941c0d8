"""Names that a reader takes for one, and names that he does not."""

import pytest

from egmae_jax.data import similar_names

ALIKE = (
    ("Benign", "benign"),
    ("N\u00e4vus", "Na\u0308vus"),  # composed and decomposed
    ("N\u00e4vus", "Navus"),
    ("viral pneumonia", "viral\u00a0pneumonia"),  # no-break
    ("viral pneumonia", "viral_pneumonia"),
    ("no_tumor", "notumor"),
    ("benign", " benign "),
    ("benign", "benign\u200b"),  # zero-width space
    ("benign", "b\u0435nign"),  # a Cyrillic e
    ("fibroma", "\ufb01broma"),  # a ligature
    ("B", "\uff22"),  # full width
    ("Stra\u00dfe", "STRASSE"),
    ("T1\u20132", "T1-2"),  # a dash
    ("COVID-19", "Covid19"),
    ("0", "0.0"),
    ("0", "00"),
    ("1.5", "1.50"),
    ("-1", "-1.0"),
    ("grade 1", "Grade_01"),
    ("P1", "P 1"),
    ("P1", "P01"),
    ("0", "-0"),
    (".5", "0.50"),
    ("1,5", "1.5"),
    ("HER2+", "HER2 +"),
    ("(a, b)", "( a,b )"),
)
DIFFERENT = (
    ("-1", "1"),
    ("grade -1", "grade 1"),
    ("HER2+", "HER2-"),
    ("HER2", "HER2-"),
    ("10", "100"),
    ("1.05", "1.5"),
    ("0.1", "1"),
    ("1-2", "12"),
    ("bbps-2-3", "bbps-23"),
    ("1.2.840.10", "1.2.840.1"),
    ("+", "-"),
    ("0.5", "-0.5"),
    ("99999999999999999998", "99999999999999999999"),
    ('["1", "23"]', '["12", "3"]'),
)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_names_that_look_alike_are_one(one, other):
    assert one != other
    assert similar_names.key(one) == similar_names.key(other)
    assert similar_names.groups([one, other, "something else"]) == [sorted([one, other])]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_names_that_differ_are_two(one, other):
    assert similar_names.key(one) != similar_names.key(other)
    assert similar_names.groups([one, other]) == []


def test_what_pandas_reads_as_missing_is_missing():
    """pandas' own list (its documentation of read_csv, na_values)."""
    listed = (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-NaN", "-nan", "1.#QNAN", "<NA>", "N/A"),
        *("NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
    assert all(map(similar_names.is_missing, listed))
    assert not any(
        map(similar_names.is_missing, ("0", "normal", "Nano", "-", "+", "no", "unknown"))
    )


def test_letters_that_do_not_show_are_written_out():
    text = similar_names.spelled_out(["benign", "benign\u200b"])
    assert text == "'benign' and 'benign\\u200b' ('benign\\u200b')"
    assert "'N\\xe4vus'" in similar_names.spelled_out(["N\u00e4vus", "Na\u0308vus"])
