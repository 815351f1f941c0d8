"""Tables that others have made: names of columns, of parts, delimiters, encodings."""

import logging

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from egmae_jax.data import datasets
from egmae_jax.data.datasets import DataError

ROWS = (
    ("1.png", "cat", "p1", "train"),
    ("2.png", "dog", "p2", "test"),
)
EXPECTED = {"1.png": ("cat", "p1", "train"), "2.png": ("dog", "p2", "test")}


@pytest.fixture
def listed(tmp_path, caplog):
    """Lists a table: {file: (label, group, split)}; what is said stands in caplog."""
    for file, *_ in ROWS:
        (tmp_path / file).touch()

    def list_images(table, name="manifest.csv"):
        content = table if isinstance(table, bytes) else table.encode()
        (tmp_path / name).write_bytes(content)
        with caplog.at_level(logging.INFO, logger="egmae_jax"):
            result = datasets.get("manifest").list_images(tmp_path)
        return {image.file: image[1:] for image in result}

    return list_images


def table(columns, rows=ROWS, delimiter=","):
    return "\n".join(delimiter.join(row) for row in (columns, *rows)) + "\n"


@pytest.mark.parametrize(
    "columns",
    [
        ("path", "label", "group", "split"),
        ("Path", "LABEL", "Group", "Split"),
        ("File Name", "Diagnosis", "Patient ID", "Partition"),
        ("filepath", "label", "\u200bStudy", "part"),
        ('"path"', '"label"', '"case_id"', '"split"'),
    ],
)
def test_columns_are_known_by_what_others_call_them(listed, columns, caplog):
    assert listed(table(columns)) == EXPECTED
    assert "not used" not in caplog.text
    plain = [name.strip('"') for name in columns]
    names = dict(zip(("path", "label", "group", "split"), plain, strict=True))
    for column, name in names.items():
        assert (f"{name!r} as {column!r}" in caplog.text) == (name != column)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_spreadsheets_of_any_country_are_read(listed, delimiter, encoding, newline):
    text = table(("path", "label", "group", "split"), delimiter=delimiter).replace("\n", newline)
    assert listed(("\n\n" + text).encode(encoding)) == EXPECTED


def test_parts_are_known_by_what_others_call_them(listed, tmp_path, caplog):
    (tmp_path / "3.png").touch()
    rows = (("1.png", "cat", "TRAIN"), ("2.png", "dog", "val"), ("3.png", "dog", "testing"))
    result = listed(table(("path", "label", "split"), rows))
    assert [x[2] for x in result.values()] == ["train", "validation", "test"]
    assert "the split 'testing' is read as test (1 lines)" in caplog.text


def test_paths_of_another_system_are_taken(listed, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("sub/1.png", "Na\u0308vus.png"):
        (tmp_path / name).touch()
    rows = ((r"sub\1.png", "cat"), ("N\u00e4vus.png", "dog"))
    result = listed(table(("path", "label"), rows))
    assert set(result) == {"sub/1.png", "Na\u0308vus.png"}


def test_columns_that_are_not_used_are_named(listed, caplog):
    rows = (("0", "1.png", "cat", "51", "arm", "0"), ("1", "2.png", "dog", "60", "leg", "1"))
    result = listed(table(("", "path", "label", "age", "part", "fold"), rows))
    assert {x[2] for x in result.values()} == {None}  # neither arms nor folds are parts
    assert "not used: age, part, fold" in caplog.text
    rows = (("1.png", "cat", "a", "P1"), ("2.png", "dog", "b", "P1"))
    result = listed(table(("path", "label", "group", "patient_id"), rows))
    assert [x[1] for x in result.values()] == ["a", "b"]  # the documented name wins
    assert "not used: patient_id" in caplog.text


def test_images_without_a_group_are_counted(listed, tmp_path, caplog):
    (tmp_path / "3.png").touch()
    rows = (("1.png", "cat", "nan"), ("2.png", "dog", ""), ("3.png", "dog", "p3"))
    result = listed(table(("path", "label", "patient"), rows))
    assert [x[1] for x in result.values()] == [None, None, "p3"]
    assert "2 of 3 lines have no group; each of these images is treated as its own" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label,patient_id,lesion_id", "2 columns that could be the group: patient_id, les"),
        ("path,label,path\n1.png,cat,2.png", "could be the path: path, path"),
        ("path,lable", "no column label; its columns are path, lable"),
        ("path,label\n/etc/passwd,cat", "must be relative to"),
        ("path,label\n..\\1.png,cat", "must be relative to"),
        ("path,label\n.,cat", "must be relative to"),
        ("path,label\nnowhere.png,cat", "line 2: there is no file .*nowhere.png"),
        ("path,label\n1.png, ", "the label is empty"),
        ("path,label\n1.png,cat\n./1.png,dog", "line 3: 1.png is listed twice"),
        ("path,label\n1.png,cat\n2.png,cat", "at least two classes"),
        ("path,label\n1.png", "line 2 has 1 values, but its first line names 2"),
        ("path,label,split\n1.png,cat,train\n2.png,dog,", "1 of 2 lines have no split"),
        ("path,label,subset\n1.png,cat,train\n2.png,dog,tset", "split is 'tset'; it must be"),
        ("path,label\n1.png,N\xe4vus".encode("latin-1"), "not a CSV file in UTF-8.*save it"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(listed, content, message):
    with pytest.raises(DataError, match=message):
        listed(content)


def test_a_folder_with_other_tables_names_them(listed):
    with pytest.raises(DataError, match=r"has no manifest\.csv; it has labels\.csv"):
        listed("path,label\n", "labels.csv")


TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.fixture(scope="module")
def listed_anew(tmp_path_factory):
    """Lists a manifest of that content beside two images; a third lies outside."""
    root = tmp_path_factory.mktemp("tables") / "data"
    root.mkdir()
    for name in ("1.png", "2.png", "../secret.png"):
        (root / name).touch()

    def list_images(content):
        content = content if isinstance(content, bytes) else content.encode()
        (root / "manifest.csv").write_bytes(content)
        return datasets.get("manifest").list_images(root)

    return list_images


CELL = st.sampled_from(["1.png", "2.png", "../secret.png", "cat", "dog", "train", "", '"', "\0"])


LINES = st.lists(st.lists(CELL | TEXT, max_size=4).map(",".join), max_size=4).map("\n".join)


@given(LINES.map(lambda rows: f"path,label\n{rows}".encode()) | TEXT.map(str.encode) | st.binary())
@example(b"\xef\xbb\xbfpath,label\n1.png,cat\n2.png,dog\n")  # a byte order mark
@example(b"\xff\xfep\0a\0t\0h\0")
@example(b'path,label\n"1.png,cat\n2.png,dog\n')  # a quote that is not closed
@example(b"path,label\n" + b"x" * 200_000 + b",cat\n")
@settings(max_examples=100)
def test_a_manifest_lists_images_below_its_folder_or_says_what_is_wrong(listed_anew, content):
    try:
        images = listed_anew(content)
    except DataError as error:
        assert "manifest.csv" in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert {image.file for image in images} == {"1.png", "2.png"}
        assert all(image.label for image in images)
