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

from egmae_jax.core.files import DamagedFileError
from egmae_jax.data import images
from egmae_jax.data.datasets import DataError
from egmae_jax.data.prepare import prepare
from tests.data.writers import picture

REPOSITORY = Path(__file__).parents[2]


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


def prepared(folder, *, name="image_folder", on_error="raise", threshold=0.99):
    cache = folder.parent / "cache"
    return prepare(name, folder, cache, on_error=on_error, near_duplicate_threshold=threshold)


def record_files(folder):
    """{path: time of writing} of all records in the cache."""
    cache = folder.parent / "cache"
    paths = cache.rglob("*.array_record*")
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def test_files_are_sorted_with_the_right_labels(tree):
    (tree / "größer als 5 mm").mkdir()
    picture(60).save(tree / "größer als 5 mm" / "Aufnahme 1, é.PNG")
    data = prepared(tree)
    expected = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.*"))
    assert list(data.files) == expected
    assert data.classes == ("benign", "größer als 5 mm", "malignant", "normal")
    assert [data.classes[label] for label in data.labels] == [f.split("/")[0] for f in expected]
    assert data.skipped == ()
    assert len(set(data.groups.tolist())) == 19  # no image is like another
    assert data.duplicate_groups == 0


def test_records_are_the_files_pixels_and_hashes_are_of_their_bytes(tree):
    picture(70).convert("L").save(tree / "benign" / "grey.png")
    picture(71).convert("CMYK").save(tree / "benign" / "cmyk.jpg")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture(72).save(tree / "benign" / "rotated.jpg", exif=exif)  # OpenCV would not turn it
    data = prepared(tree)
    assert len(data.records) == len(data.files) == 21
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
    assert len(files) == 1
    second = prepared(tree)
    assert record_files(tree) == files
    assert second.files == first.files
    assert second.sha256 == first.sha256
    np.testing.assert_array_equal(second.labels, first.labels)
    np.testing.assert_array_equal(second.groups, first.groups)
    np.testing.assert_array_equal(second.records.pixels(7), first.records.pixels(7))


def test_changed_added_and_removed_files_make_new_records(tree):
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


def test_two_folders_with_the_same_names_do_not_share_records(tree, tmp_path):
    other = tmp_path / "other"
    tree.rename(other)
    prepared(other)
    other.rename(tree)
    assert len(record_files(tree)) == 1
    prepared(tree)
    assert len(record_files(tree)) == 2


# --- near-duplicates ---------------------------------------------------------------------------


def test_near_duplicates_are_one_group_across_formats_and_classes(tree):
    original = PIL.Image.open(tree / "normal" / "normal (1).png")
    original.save(tree / "normal" / "again.jpg", quality=90)
    original.resize((50, 50)).save(tree / "benign" / "resized.png")
    data = prepared(tree)
    names = ("normal/normal (1).png", "normal/again.jpg", "benign/resized.png")
    copies = {data.groups[data.files.index(file)] for file in names}
    assert len(copies) == 1
    assert len(set(data.groups.tolist())) == 18
    assert data.duplicate_groups == 1


# --- unreadable images -------------------------------------------------------------------------


@pytest.fixture
def damaged(tree):
    """The tree with a text file, a truncated and an empty one among its images."""
    (tree / "benign" / "benign (1).png").write_bytes(b"this is a text")
    whole = (tree / "malignant" / "malignant (2).jpg").read_bytes()
    (tree / "malignant" / "malignant (2).jpg").write_bytes(whole[: len(whole) // 2])
    (tree / "normal" / "normal (3).png").write_bytes(b"")
    return tree


REASONS = {
    "benign/benign (1).png": images.NOT_AN_IMAGE,
    "malignant/malignant (2).jpg": "truncated",
    "normal/normal (3).png": "empty",
}


def test_raise_names_every_unreadable_file_its_reason_and_the_count(damaged):
    with pytest.raises(DataError) as caught:
        prepared(damaged)
    message = str(caught.value)
    assert "3 of 18 images" in message
    assert "data.on_error=skip" in message
    for file, reason in REASONS.items():
        assert file in message
        assert reason in message
    assert not record_files(damaged)


def test_skip_leaves_out_and_reports_also_from_the_cache(damaged, caplog):
    expected = {path.relative_to(damaged).as_posix() for path in damaged.rglob("*.*")}
    for call in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="egmae_jax"):
            data = prepared(damaged, on_error="skip")
        assert set(data.files) == expected - REASONS.keys()
        assert len(data.files) == len(data.labels) == len(data.groups) == len(data.sha256) == 15
        assert len(data.skipped) == 3, f"call {call}"
        for (file, reason), said in zip(REASONS.items(), data.skipped, strict=True):
            assert said.startswith(file)
            assert reason in said
        assert "3 unreadable images are left out" in caplog.text
        for index, file in enumerate(data.files):  # records and files did not shift apart
            image = images.decode((damaged / file).read_bytes())
            np.testing.assert_array_equal(data.records.pixels(index), np.asarray(image))
            assert data.classes[data.labels[index]] == file.split("/")[0]
    assert len(record_files(damaged)) == 1


def test_a_damaged_cache_is_named(tree):
    prepared(tree)
    (path,) = record_files(tree)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    data = prepared(tree)
    with pytest.raises(DamagedFileError, match=rf"{path.parent.name} is damaged.*delete it"):
        [data.records.pixels(i) for i in range(len(data.files))]
    index = next((tree.parent / "cache").rglob("index.npz"))
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(DamagedFileError, match=r"index\.npz is damaged.*delete it"):
        prepared(tree)
    index.unlink()  # then all is made anew
    data = prepared(tree)
    assert data.records.pixels(0).any()


def test_a_record_of_other_bytes_is_named(tree):
    data = prepared(tree)
    data.records._digests[3] = "0" * 64  # as of a file with a flipped bit
    with pytest.raises(DamagedFileError, match="record 3 is not what was written"):
        data.records.pixels(3)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("write() failed: No space left on device; writing /x; at byte 9"),  # Riegeli's
        OSError(errno.ENOSPC, "No space left on device"),  # of the other files
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_told_and_leaves_no_half_written_set(tree, monkeypatch, error):
    def full(self, *_):
        raise error

    with monkeypatch.context() as context:
        context.setattr(array_record_module.ArrayRecordWriter, "write", full)
        with pytest.raises(DataError, match=r"data\.cache_dir.*No space left"):
            prepared(tree)
    assert not record_files(tree)
    assert len(prepared(tree).files) == 18


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
from egmae_jax.data.prepare import prepare
folder = Path(sys.argv[1])
data = prepare("image_folder", folder, folder.parent / "cache", on_error="raise",
               near_duplicate_threshold=0.99)
data.records.pixels(0)
heavy = {"tensorflow", "torch", "torchvision", "timm"} & set(sys.modules)
print(len(data.files), sorted(heavy))
"""


def test_two_processes_prepare_at_once_without_tensorflow_and_torch(tree):
    command = [sys.executable, "-c", _PREPARE, str(tree)]
    options = {"cwd": REPOSITORY, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **options) for _ in range(2)]
    for process in processes:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert output == "18 []\n"  # and TFDS prints nothing of its own
    assert len(record_files(tree)) == 1


def test_names_can_tell_patients(tree):
    cache = tree.parent / "cache"
    options = {"on_error": "raise", "near_duplicate_threshold": 0.99}
    plain = prepare("image_folder", tree, cache, **options)
    file = next(f for f in plain.files if f.startswith("normal/"))
    for k, label in ((1, "normal"), (2, "benign")):  # two more of one patient, of two classes
        picture(100 + k).save(tree / label / f"p07_{k}.png")
    (tree / file).rename(tree / "normal" / "p07_3.png")
    data = prepare("image_folder", tree, cache, group_pattern=r"(p\d+)_\d", **options)
    patient = [i for i, f in enumerate(data.files) if "p07" in f]
    assert len(patient) == 3
    assert len(set(data.groups[patient])) == 1
    assert len(set(data.groups)) == len(set(plain.groups))
    with pytest.raises(
        DataError, match=r"data\.group_pattern '\(q\)' finds nothing in any of 20 names"
    ):
        prepare("image_folder", tree, cache, group_pattern="(q)", **options)


def test_what_can_be_mended_without_the_file_stops_even_where_damage_is_skipped(tree, monkeypatch):
    """It must not be remembered as a skip: the file will be the same when it is mended."""
    read_bytes = Path.read_bytes

    def failing(path):
        if path.name == "normal (0).jpg" or path.stem.endswith("(3)"):
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", failing)
        with pytest.raises(DataError, match=r"cannot be read: PermissionError"):
            prepared(tree, on_error="skip")
    assert len(prepared(tree, on_error="skip").files) == 18


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_metadata_of_records_are_named(tree, name):
    prepared(tree)
    (path,) = (tree.parent / "cache").rglob(name)
    path.write_text("{")
    with pytest.raises(DamagedFileError, match=rf"{path.parent.name} is damaged.*delete it"):
        prepared(tree)


def test_a_link_to_nothing_is_an_unreadable_image(tree):
    link = next(tree.rglob("*.*")).with_name("link.png")
    link.symlink_to(tree / "nowhere.png")
    with pytest.raises(DataError, match=r"1 of 19.*link\.png.*No such file"):
        prepared(tree)
    data = prepared(tree, on_error="skip")
    assert len(data.files) == 18
    assert "link.png" in data.skipped[0]


def test_raise_does_not_take_records_that_skip_wrote(damaged):
    prepared(damaged, on_error="skip")
    with pytest.raises(DataError, match="3 of 18"):
        prepared(damaged, on_error="raise")


def test_skip_with_nothing_readable_is_a_data_error(tree):
    # Otherwise TFDS ends in an AssertionError: "No examples were yielded".
    for path in tree.rglob("*.*"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="18"):
        prepared(tree, on_error="skip")


# --- folders and classes -------------------------------------------------------------------------


def test_missing_folder_names_the_field_and_how_to_get_the_data(tmp_path):
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "nowhere", name="busi")
    message = str(caught.value)
    assert str(tmp_path / "nowhere") in message
    assert "data.dir" in message
    assert "Download" in message
    assert "https://" in message
    with pytest.raises(DataError, match=r"data\.dir.*<folder>/<class>/"):
        prepared(tmp_path / "nowhere")
    assert not (tmp_path / "cache").exists()


def test_phantoms_are_generated_where_there_is_no_folder(tmp_path, monkeypatch):
    from egmae_jax.data.datasets import phantoms

    monkeypatch.setattr(phantoms, "IMAGES_PER_CLASS", 1)
    data = prepared(tmp_path / "phantoms", name="phantoms")
    assert len(data.files) == 3
    assert len(data.classes) == 3
    assert prepared(tmp_path / "phantoms", name="phantoms").sha256 == data.sha256
    monkeypatch.setattr(phantoms, "IMAGES_PER_CLASS", 2)  # as another version might
    with pytest.raises(DataError, match=r"data\.dir.*holds other files.*Remove the folder"):
        prepared(tmp_path / "phantoms", name="phantoms")


def test_pixels_many_times_larger_than_the_file_are_not_packed(tmp_path):
    for k in range(4):
        folder = tmp_path / "data" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(k).integers(0, 256, (60, 60, 3), np.uint8)
        flat = np.full((300, 300, 3), k, np.uint8)
        PIL.Image.fromarray(noise).save(folder / f"noise {k}.png")
        PIL.Image.fromarray(flat).save(folder / f"flat {k}.png")
    data = prepared(tmp_path / "data")
    for index, file in enumerate(data.files):
        expected = images.decode((tmp_path / "data" / file).read_bytes())
        np.testing.assert_array_equal(data.records.pixels(index), np.asarray(expected))


# --- near misses ---------------------------------------------------------------------------------

OPTIONS = {"on_error": "raise", "near_duplicate_threshold": 0.99}


def table_of(root, rows, columns="path,label,group"):
    """A manifest of as many images as there are rows, which are (label, group)."""
    root.mkdir(parents=True)
    for k, _ in enumerate(rows):
        picture(k).save(root / f"{k}.png")
    lines = [f"{k}.png,{','.join(row)}" for k, row in enumerate(rows)]
    (root / "manifest.csv").write_text("\n".join([columns, *lines]), encoding="utf-8")
    return root


@pytest.mark.parametrize("alike", [("Benign", "benign"), ("0", "0.0"), ("n\u00e4", "na\u0308")])
@pytest.mark.parametrize("name", ["manifest", "image_folder"])
def test_classes_that_look_alike_stop_with_both_names(tmp_path, name, alike):
    root = tmp_path / "data"
    if name == "manifest":
        table_of(root, [(alike[0], ""), (alike[1], ""), (alike[1], ""), ("other", "")])
    else:
        for k, label in enumerate((*alike, alike[1], "other")):
            (root / label).mkdir(parents=True, exist_ok=True)
            picture(k).save(root / label / f"{k}.png")
    with pytest.raises(DataError, match="look alike") as caught:
        prepared(root, name=name)
    for label, count in ((alike[0], 1), (alike[1], 2)):
        assert f"{label!a}" in str(caught.value)
        assert f"{count} images such as" in str(caught.value)
    assert not (tmp_path / "cache").exists()  # nothing was read
    options = OPTIONS | {"classes": ("other", alike[1])}
    with pytest.raises(DataError, match="look alike"):  # also where one of them is asked for
        prepare(name, root, tmp_path / "cache", **options)


@pytest.mark.parametrize("label", ["nan", "None", "NA", "N/A", "null"])
def test_a_label_that_stands_for_a_missing_one_stops_unless_it_is_named(tmp_path, label):
    root = table_of(tmp_path / "data", [("cat", ""), (label, ""), ("dog", ""), ("dog", "")])
    with pytest.raises(
        DataError, match=f"stands for a missing one: '{label}', 1 images such as 1.p"
    ):
        prepared(root, name="manifest")
    cache = tmp_path / "cache"
    data = prepare("manifest", root, cache, classes=("cat", label), **OPTIONS)
    assert set(data.classes) == {"cat", label}
    data = prepare("manifest", root, cache, classes=("cat", "dog"), **OPTIONS)
    assert data.other_classes == {label: 1}
    assert data.num_found == 4


def test_chosen_classes_are_matched_as_a_reader_would(tree, caplog):
    cache = tree.parent / "cache"
    with caplog.at_level(logging.INFO, logger="egmae_jax"):
        data = prepare("image_folder", tree, cache, classes=("Normal", "BENIGN"), **OPTIONS)
    assert data.classes == ("benign", "normal")
    assert data.other_classes == {"malignant": 6}
    assert data.num_found == 18
    assert "data.classes: 'normal' is taken for 'Normal'" in caplog.text
    with pytest.raises(DataError, match=r"names bening; .* Is 'benign' meant\?"):
        prepare("image_folder", tree, cache, classes=("bening", "normal"), **OPTIONS)


def test_patients_that_look_alike_stay_together_and_are_named(tmp_path, caplog):
    rows = [("cat", "P001"), ("dog", "p001"), ("cat", "17"), ("dog", "17.0"), ("cat", "P002")]
    data = prepared(table_of(tmp_path / "data", rows), name="manifest")
    same = [int(np.sum(data.groups == group)) for group in data.groups]
    assert same == [2, 2, 2, 2, 1]
    assert data.groups[0] == data.groups[1] != data.groups[2] == data.groups[3]
    assert "2 groups (patients, lesions) are spelled in several ways" in caplog.text
    assert "'17' and '17.0', 'P001' and 'p001'" in caplog.text


@pytest.mark.parametrize("pattern", [r"(p\d+)?_?\d", r"^(p?\d*)", r"(p\d+)_|(q\d+)"])
def test_names_that_tell_nobody_are_not_one_patient(tree, caplog, pattern):
    for k, name in enumerate(("p7_1", "p7_2")):
        picture(100 + k).save(tree / "normal" / f"{name}.png")
    cache = tree.parent / "cache"
    with caplog.at_level(logging.INFO, logger="egmae_jax"):
        data = prepare("image_folder", tree, cache, group_pattern=pattern, **OPTIONS)
    sizes = np.bincount(data.groups)[data.groups]
    together = {Path(file).stem for file, n in zip(data.files, sizes, strict=True) if n > 1}
    assert together == {"p7_1", "p7_2"}
    assert "data.group_pattern finds 1 groups" in caplog.text
    assert "finds nothing in 18 of 20 names" in caplog.text
    assert " and 8 more" in caplog.text


def test_a_pattern_that_names_every_image_alone_is_told(tree, caplog):
    prepare("image_folder", tree, tree.parent / "cache", group_pattern=r"(.*)\.", **OPTIONS)
    assert "finds as many groups as names" in caplog.text
    assert "keeps no two images together" in caplog.text
