"""Tables that others have made: names of columns, of parts, delimiters, encodings."""

import logging

import pytest

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
            found = datasets.get("manifest").list_images(tmp_path)
        return {image.file: image[1:] for image in found}

    return list_images


def table(columns, rows=ROWS, delimiter=","):
    return "\n".join(delimiter.join(row) for row in (columns, *rows)) + "\n"


@pytest.mark.parametrize(
    "columns",
    [
        ("path", "label", "group", "split"),
        ("Path", "LABEL", "Group", "Split"),
        ("file", "class", "patient_id", "subset"),
        ("File Name", "Diagnosis", "Patient ID", "Partition"),
        ("image_path", "target", "PatientID", "fold"),
        ("filename", "dx", "lesion_id", "SET"),
        ("image", "category", "subject-id", "usage"),
        ("filepath", "label", "\u200bStudy", "part"),
        ('"path"', '"label"', '"case_id"', '"split"'),
    ],
)
def test_columns_are_known_by_what_others_call_them(listed, columns, caplog):
    assert listed(table(columns)) == EXPECTED
    assert "not used" not in caplog.text
    plain = [name.strip('"\u200b') for name in columns]
    names = dict(zip(("path", "label", "group", "split"), plain, strict=True))
    for column, name in names.items():
        assert (f"{name!r} for {column!r}" in caplog.text) == (name != column)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_spreadsheets_of_any_country_are_read(listed, delimiter, encoding, newline):
    text = table(("path", "label", "group", "split"), delimiter=delimiter).replace("\n", newline)
    bom = b"\xff\xfe" if encoding == "utf-16-le" else b""
    assert listed(bom + text.encode(encoding)) == EXPECTED


def test_excels_line_before_the_header_is_passed_over(listed):
    text = table(("path", "label", "group", "split"), delimiter=";")
    assert listed(f"sep=;\r\n{text}") == EXPECTED
    with pytest.raises(DataError, match="line 5 has 2 values; its first line names 4 columns"):
        listed(f"sep=;\r\n{text}3.png;cat\n")


def test_what_is_no_text_in_utf_8_is_told(listed):
    with pytest.raises(DataError, match=r"no CSV file in UTF-8: .*0xe4.*save it as that"):
        listed("path,label\n1.png,N\xe4vus\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a workbook, no CSV file"):
        listed(b"PK\x03\x04" + bytes(99))


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("training", "validation", "testing"), ("TRAIN", "Val", "Test"), ("trn", "valid", "tst")],
)
def test_parts_are_known_by_what_others_call_them(
    listed, tmp_path, train, validation, test, caplog
):
    (tmp_path / "3.png").touch()
    rows = (("1.png", "cat", train), ("2.png", "dog", validation), ("3.png", "dog", test))
    found = listed(table(("path", "label", "split"), rows))
    assert [x[2] for x in found.values()] == ["train", "validation", "test"]
    assert f"the split {test!r} is read as test (1 lines)" in caplog.text


def test_a_column_of_folds_is_no_split_and_is_named(listed, caplog):
    rows = (("1.png", "cat", "0"), ("2.png", "dog", "1"))
    found = listed(table(("path", "label", "fold"), rows))
    assert {x[2] for x in found.values()} == {None}
    assert "not used: fold; 'fold' holds 0, 1, which are no names of parts" in caplog.text
    assert "rounds.kind=folds" in caplog.text


def test_a_part_of_the_body_is_no_split(listed, caplog):
    rows = (("1.png", "cat", "arm", "train"), ("2.png", "dog", "leg", "test"))
    found = listed(table(("path", "label", "part", "set"), rows))
    assert [x[2] for x in found.values()] == ["train", "test"]
    assert "not used: part; 'part' holds arm, leg" in caplog.text


def test_one_part_that_is_none_is_told(listed):
    rows = (("1.png", "cat", "train"), ("2.png", "dog", "tset"))
    with pytest.raises(DataError, match="line 3: the split is 'tset'; it can be train"):
        listed(table(("path", "label", "subset"), rows))


def test_columns_that_are_not_used_are_named(listed, caplog):
    rows = (("0", "1.png", "cat", "51", "", "x"), ("1", "2.png", "dog", "60", "", "x"))
    listed(table(("", "path", "label", "age", "", "spilt"), rows))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.endswith(
        "not used: (without name, the 1.), age, spilt; if 'spilt' is the split, call it 'split'"
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ("path", "label", "patient_id", "lesion_id"),
            r"2 columns that could be the group: patient_id, lesion_id. Call the one .* 'group', "
            "by whose values images must stay together",
        ),
        (("path", "diagnosis", "target", "x"), "could be the label: diagnosis, target"),
        (("file", "image", "label", "x"), "could be the path: file, image"),
        (("path", "label", "Group", "GROUP"), "two columns 'group'"),
        (("path", "lable", "x", "y"), "no column label; .* Is it 'lable'. Call it 'label'"),
    ],
)
def test_columns_between_which_nobody_can_choose_stop(listed, columns, message):
    with pytest.raises(DataError, match=message):
        listed(table(columns))


@pytest.mark.parametrize("other", ["patient_id", "Group"])
def test_the_documented_name_wins_and_patients_that_it_parts_are_told(listed, caplog, other):
    rows = (("1.png", "cat", "a", "P1"), ("2.png", "dog", "b", "P1"))
    found = listed(table(("path", "label", "group", other), rows))
    assert [x[1] for x in found.values()] == ["a", "b"]
    assert f"1 of 1 values of {other!r} have images in several groups of 'group'" in caplog.text


def test_quotes_after_a_space_and_empty_lines_above_are_no_part_of_the_table(listed):
    found = listed('\n\r\npath, "label"\n1.png, "cat"\n2.png, dog\n')
    assert [x[0] for x in found.values()] == ["cat", "dog"]
    with pytest.raises(DataError, match="line 3 has 1 values"):
        listed("\npath,label\n1.png\n")


def test_images_without_a_group_are_counted(listed, tmp_path, caplog):
    (tmp_path / "3.png").touch()
    rows = (("1.png", "cat", "nan"), ("2.png", "dog", ""), ("3.png", "dog", "p3"))
    found = listed(table(("path", "label", "patient"), rows))
    assert [x[1] for x in found.values()] == [None, None, "p3"]
    assert "2 of 3 lines have no patient: each of these images counts as its own" in caplog.text


def test_paths_of_another_system_are_found_and_said(listed, tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    for name in ("sub/1.png", "Na\u0308vus.png"):
        (tmp_path / name).touch()
    rows = ((r"sub\1.png", "cat"), ("N\u00e4vus.png", "dog"))
    found = listed(table(("path", "label"), rows))
    assert set(found) == {"sub/1.png", "Na\u0308vus.png"}
    assert "backslashes are read as slashes (1 lines)" in caplog.text
    assert "composed letters are read as decomposed ones (1 lines)" in caplog.text
    with pytest.raises(DataError, match="must lead below"):
        listed("path,label\n..\\secret.png,cat\n2.png,dog\n")


def test_a_file_of_nearly_that_name_is_told(listed, tmp_path):
    (tmp_path / "ISIC_3.jpg").touch()
    for given in ("ISIC_3", "ISIC_3.JPG", "isic_3.png"):
        with pytest.raises(DataError, match=f"no file .*{given}; there is ISIC_3.jpg"):
            listed(f"path,label\n{given},cat\n2.png,dog\n")


def test_a_file_of_another_format_is_told_by_its_line(listed, tmp_path):
    (tmp_path / "3.nii.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"line 2: .*3\.nii\.gz is a file of the kind gzip"):
        listed("path,label\n3.nii.gz,cat\n2.png,dog\n")


def test_a_table_of_nearly_that_name_is_found_or_told(listed):
    assert listed(table(("path", "label", "group", "split")), "Manifest.CSV") == EXPECTED


def test_a_folder_with_other_tables_is_told_what_they_are(listed):
    with pytest.raises(DataError, match=r"has no manifest\.csv; it has labels\.csv"):
        listed("path,label\n", "labels.csv")
