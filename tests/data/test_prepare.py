"""Preparing small trees: what is described, what is cached, what is refused."""

import errno
import hashlib
import logging
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from array_record.python import array_record_module

from egmae_jax.core.errors import UserError
from egmae_jax.core.files import DamagedFileError
from egmae_jax.data import images
from egmae_jax.data.datasets import DataError
from tests import REPOSITORY
from tests.data.writers import picture, prepare_folder


@pytest.fixture
def tree(tmp_path):
    """Three classes of six images, PNG and JPEG, written in an order that is not sorted."""
    folder = tmp_path / "data"
    for index, label in enumerate(["normal", "benign", "malignant"]):
        (folder / label).mkdir(parents=True)
        for k in (5, 2, 0, 3, 1, 4):
            suffix = "png" if k % 2 else "jpg"
            picture(10 * index + k).save(folder / label / f"{label} ({k}).{suffix}")
    return folder


def prepared(folder, name="image_folder", **options):
    return prepare_folder(name, folder, folder.parent / "cache", **options)


def record_files(folder):
    """{path: time of writing} of all records in the cache."""
    paths = (folder.parent / "cache").rglob("*.array_record*")
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def test_records_are_the_files_pixels_with_their_labels_and_hashes(tree):
    picture(70).convert("L").save(tree / "benign" / "grey.png")
    picture(71).convert("CMYK").save(tree / "benign" / "cmyk.jpg")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture(72).save(tree / "benign" / "rotated.jpg", exif=exif)  # OpenCV would not turn it
    (tree / "größer als 5 mm").mkdir()
    picture(60).save(tree / "größer als 5 mm" / "Aufnahme 1, é.PNG")
    flat = np.full((300, 300, 3), 7, np.uint8)  # pixels many times larger than the file
    PIL.Image.fromarray(flat).save(tree / "normal" / "flat.png")
    data = prepared(tree)
    expected = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.*"))
    assert list(data.files) == expected
    assert data.classes == ("benign", "größer als 5 mm", "malignant", "normal")
    assert [data.classes[label] for label in data.labels] == [f.split("/")[0] for f in expected]
    assert len(set(data.groups.tolist())) == 23  # no image is like another
    for index, file in enumerate(data.files):
        content = (tree / file).read_bytes()
        for color in images.COLORS:
            expected = images.to_array(images.decode(content, color))
            np.testing.assert_array_equal(data.records.pixels(index, color), expected)
        np.testing.assert_array_equal(data.sizes[index], expected.shape[:2])
        assert data.modes[index] == PIL.Image.open(tree / file).mode
        assert data.sha256[index] == hashlib.sha256(content).hexdigest()


def test_a_second_call_writes_nothing_and_returns_the_same(tree):
    first = prepared(tree)
    files = record_files(tree)
    second = prepared(tree)
    assert record_files(tree) == files
    assert (second.files, second.sha256) == (first.files, first.sha256)
    np.testing.assert_array_equal(second.groups, first.groups)
    np.testing.assert_array_equal(second.records.pixels(7), first.records.pixels(7))


def test_changed_added_removed_and_moved_files_make_new_records(tree, tmp_path):
    prepared(tree)
    changed = tree / "benign" / "benign (1).png"
    picture(99).save(changed)
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1_000_000_000))
    data = prepared(tree)
    assert len(record_files(tree)) == 2
    index = data.files.index("benign/benign (1).png")
    np.testing.assert_array_equal(data.records.pixels(index), np.asarray(picture(99)))
    picture(50).save(tree / "normal" / "added.png")
    (tree / "benign" / "benign (0).jpg").unlink()
    data = prepared(tree)
    assert len(record_files(tree)) == 3
    assert "normal/added.png" in data.files
    assert "benign/benign (0).jpg" not in data.files
    tree.rename(tmp_path / "other")
    prepared(tmp_path / "other")
    assert len(record_files(tree)) == 4


def test_near_duplicates_are_one_group_across_formats_and_classes(tree):
    original = PIL.Image.open(tree / "normal" / "normal (1).png")
    original.save(tree / "normal" / "again.jpg", quality=90)
    original.resize((50, 50)).save(tree / "benign" / "resized.png")
    data = prepared(tree)
    (members,) = data.near_duplicates
    names = {"normal/normal (1).png", "normal/again.jpg", "benign/resized.png"}
    assert {data.files[i] for i in members} == names
    assert len(set(data.groups[members])) == 1
    assert len(set(data.groups.tolist())) == 18


# --- unreadable images -------------------------------------------------------------------------

REASONS = {
    "benign/benign (1).png": images.NOT_AN_IMAGE,
    "benign/link.png": "No such file",
    "malignant/malignant (2).jpg": "truncated",
    "normal/normal (3).png": "empty",
}


@pytest.fixture
def damaged(tree):
    """The tree with a text file, a truncated and an empty one, and a link to nothing."""
    (tree / "benign" / "benign (1).png").write_bytes(b"this is a text")
    (tree / "benign" / "link.png").symlink_to(tree / "nowhere.png")
    whole = (tree / "malignant" / "malignant (2).jpg").read_bytes()
    (tree / "malignant" / "malignant (2).jpg").write_bytes(whole[: len(whole) // 2])
    (tree / "normal" / "normal (3).png").write_bytes(b"")
    return tree


def test_every_unreadable_file_is_named_with_its_reason_or_left_out(damaged, caplog):
    with pytest.raises(DataError, match=r"4 of 19 images.*data\.on_error=skip") as caught:
        prepared(damaged)
    assert not record_files(damaged)
    for file, reason in REASONS.items():
        assert file in str(caught.value)
        assert reason in str(caught.value)
    expected = {path.relative_to(damaged).as_posix() for path in damaged.rglob("*.*")}
    for _ in range(2):  # and from the cache
        caplog.clear()
        data = prepared(damaged, on_error="skip")
        assert "4 unreadable images are left out" in caplog.text
        assert set(data.files) == expected - REASONS.keys()
        for (file, reason), text in zip(REASONS.items(), data.skipped, strict=True):
            assert text.startswith(file)
            assert reason in text
        for index, file in enumerate(data.files):  # records and files did not shift apart
            image = images.decode((damaged / file).read_bytes())
            np.testing.assert_array_equal(data.records.pixels(index), np.asarray(image))
            assert data.classes[data.labels[index]] == file.split("/")[0]
    assert len(record_files(damaged)) == 1
    with pytest.raises(DataError, match="4 of 19"):  # the records do not hide it
        prepared(damaged)


def test_skip_with_nothing_readable_is_a_data_error(tree):
    for path in tree.rglob("*.*"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="18"):
        prepared(tree, on_error="skip")


def test_what_can_be_mended_without_the_file_stops_even_where_damage_is_skipped(tree, monkeypatch):
    """It must not be remembered as a skip: the file will be the same when it is mended."""
    read_bytes = Path.read_bytes

    def failing(path):
        if path.name == "normal (0).jpg":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", failing)
        with pytest.raises(DataError, match=r"cannot be read: PermissionError"):
            prepared(tree, on_error="skip")
    assert len(prepared(tree, on_error="skip").files) == 18


# --- the cache -----------------------------------------------------------------------------------


def test_a_damaged_cache_is_named(tree):
    prepared(tree)
    (path,) = record_files(tree)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    data = prepared(tree)
    with pytest.raises(DamagedFileError, match=rf"{path.parent.name} is damaged.*delete it"):
        [data.records.pixels(i) for i in range(len(data.files))]
    path.write_bytes(whole)
    (info,) = (tree.parent / "cache").rglob("dataset_info.json")
    info.write_text("{")
    with pytest.raises(DamagedFileError, match=rf"{path.parent.name} is damaged.*delete it"):
        prepared(tree)
    index = next((tree.parent / "cache").rglob("index.npz"))
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(DamagedFileError, match=r"index\.npz is damaged.*delete it"):
        prepared(tree)
    index.unlink()  # then all is made anew
    data = prepared(tree)
    assert data.records.pixels(3).any()
    data.records._digests[3] = "0" * 64  # as of a file with a flipped bit
    with pytest.raises(DamagedFileError, match="record 3 has changed since it was written"):
        data.records.pixels(3)


def test_a_full_disk_is_named_and_leaves_no_half_written_set(tree, monkeypatch):
    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(array_record_module.ArrayRecordWriter, "write", full)
        with pytest.raises(DataError, match=r"data\.cache_dir.*No space left"):
            prepared(tree)
    assert not record_files(tree)
    assert len(prepared(tree).files) == 18


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    """Of 100 MB of files some twenty are in memory: sixteen read ahead and what is at work."""
    rng = np.random.default_rng(0)
    for k in range(100):
        path = tmp_path / "data" / "ab"[k % 2] / f"{k}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
        PIL.Image.fromarray(pixels).resize((600, 555)).save(path)
    tracemalloc.start()
    data = prepared(tmp_path / "data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.files) == 100
    assert peak < 60e6


_PREPARE = """
import sys
from pathlib import Path
from tests.data.writers import prepare_folder
folder = Path(sys.argv[1])
data = prepare_folder("image_folder", folder, folder.parent / "cache")
data.records.pixels(0)
heavy = {"tensorflow", "torch", "torchvision", "timm"} & set(sys.modules)
print(len(data.files), sorted(heavy))
"""


@pytest.mark.slow
@pytest.mark.essential
def test_two_processes_prepare_at_once_without_tensorflow_and_torch(tree):
    command = [sys.executable, "-c", _PREPARE, str(tree)]
    options = {"cwd": REPOSITORY, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **options) for _ in range(2)]
    for process in processes:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert output == "18 []\n"  # and TFDS prints nothing of its own
    assert len(record_files(tree)) == 1


# --- folders, classes and groups -----------------------------------------------------------------


def test_a_missing_folder_is_named_with_how_to_get_the_data(tmp_path):
    with pytest.raises(DataError, match=r"nowhere \(data\.dir\)\. Download .*https://"):
        prepared(tmp_path / "nowhere", "busi")
    assert not (tmp_path / "cache").exists()


def test_phantoms_are_generated_where_there_is_no_folder(tmp_path, monkeypatch):
    from egmae_jax.data.datasets import phantoms

    monkeypatch.setattr(phantoms, "IMAGES_PER_CLASS", 1)
    data = prepared(tmp_path / "phantoms", "phantoms")
    assert (len(data.files), len(data.classes)) == (3, 3)
    assert prepared(tmp_path / "phantoms", "phantoms").sha256 == data.sha256
    monkeypatch.setattr(phantoms, "IMAGES_PER_CLASS", 2)  # as another version might
    with pytest.raises(UserError, match=r"data\.dir.*contains phantoms with .*remove the folder"):
        prepared(tmp_path / "phantoms", "phantoms")


def table_of(root, rows):
    """A manifest of as many images as there are rows, which are (label, group)."""
    root.mkdir(parents=True)
    for k, _ in enumerate(rows):
        picture(k).save(root / f"{k}.png")
    lines = [f"{k}.png,{','.join(row)}" for k, row in enumerate(rows)]
    (root / "manifest.csv").write_text("\n".join(["path,label,group", *lines]), encoding="utf-8")
    return root


@pytest.mark.parametrize("alike", [("Benign", "benign"), ("0", "0.0"), ("n\u00e4", "na\u0308")])
def test_classes_that_look_alike_stop_with_both_names(tmp_path, alike):
    root = table_of(tmp_path / "data", [(alike[0], ""), *((x, "") for x in (alike[1],) * 2)])
    for classes in ((), (alike[1],)):  # also where one of them is asked for
        with pytest.raises(DataError, match="look alike") as caught:
            prepared(root, "manifest", classes=classes)
        for label, count in ((alike[0], 1), (alike[1], 2)):
            assert f"{label!a}" in str(caught.value)
            assert f"{count} images such as" in str(caught.value)
    assert not (tmp_path / "cache").exists()  # nothing was read


def test_a_label_that_stands_for_a_missing_one_stops_unless_it_is_named(tmp_path):
    root = table_of(tmp_path / "data", [("cat", ""), ("nan", ""), ("dog", ""), ("dog", "")])
    with pytest.raises(DataError, match="means a missing value: 'nan', 1 images"):
        prepared(root, "manifest")
    assert set(prepared(root, "manifest", classes=("cat", "nan")).classes) == {"cat", "nan"}
    data = prepared(root, "manifest", classes=("cat", "dog"))
    assert data.other_classes == {"nan": 1}
    assert data.num_found == 4


def test_chosen_classes_are_matched_as_a_reader_would(tree, caplog):
    with caplog.at_level(logging.INFO, logger="egmae_jax"):
        data = prepared(tree, classes=("Normal", "BENIGN"))
    assert data.classes == ("benign", "normal")
    assert data.other_classes == {"malignant": 6}
    assert "data.classes: 'Normal' selects the class 'normal'" in caplog.text
    with pytest.raises(DataError, match=r"contains 'bening', but .* are benign, malignant, normal"):
        prepared(tree, classes=("bening", "normal"))


def test_patients_that_look_alike_stay_together_and_are_named(tmp_path, caplog):
    rows = [("cat", "P001"), ("dog", "p001"), ("cat", "17"), ("dog", "17.0"), ("cat", "P002")]
    data = prepared(table_of(tmp_path / "data", rows), "manifest")
    assert data.groups.tolist() == [0, 0, 1, 1, 2]
    assert "2 groups (patients, lesions) have several spellings" in caplog.text
    assert "'17' and '17.0', 'P001' and 'p001'" in caplog.text


@pytest.mark.parametrize("pattern", [r"(p\d+)_\d", r"(p\d+)?_?\d", r"^(p?\d*)", r"(p\d+)_|(q\d+)"])
def test_names_can_tell_patients_and_those_that_tell_nobody_stand_alone(tree, caplog, pattern):
    for k, label in ((1, "normal"), (2, "benign")):  # of one patient, of two classes
        picture(100 + k).save(tree / label / f"p7_{k}.png")
    with caplog.at_level(logging.INFO, logger="egmae_jax"):
        data = prepared(tree, group_pattern=pattern)
    sizes = np.bincount(data.groups)[data.groups]
    together = {Path(file).stem for file, n in zip(data.files, sizes, strict=True) if n > 1}
    assert together == {"p7_1", "p7_2"}
    assert "data.group_pattern matches 1 groups" in caplog.text
    assert "does not match 18 of 20 file names" in caplog.text
    with pytest.raises(DataError, match=r"'\(q\)' matches none of the 20 file names"):
        prepared(tree, group_pattern="(q)")
