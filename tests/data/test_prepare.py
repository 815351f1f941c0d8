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
from egmae_jax.data.prepare import _fast, prepare

REPOSITORY = Path(__file__).parents[2]


def picture(seed):
    """Smooth RGB shapes of 20 to 60 pixels, as different by seed as photographs."""
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(20, 61, 2))
    coarse = PIL.Image.fromarray(rng.integers(20, 236, (7, 7, 3), np.uint8))
    return coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)


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
    data = prepared(tree)
    expected = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.*"))
    assert list(data.files) == expected
    assert len(data.files) == 18
    assert data.classes == ("benign", "malignant", "normal")
    assert [data.classes[label] for label in data.labels] == [f.split("/")[0] for f in expected]
    assert data.skipped == ()
    assert data.name == "image_folder"


def test_records_are_the_files_pixels_and_hashes_are_of_their_bytes(tree):
    PIL.Image.open(tree / "benign" / "benign (1).png").convert("L").save(
        tree / "benign" / "benign (1).png"
    )
    data = prepared(tree)
    assert len(data.records) == len(data.files)
    for index, file in enumerate(data.files):
        content = (tree / file).read_bytes()
        for color in images.COLORS:
            expected = images.to_array(images.decode(content, color))
            np.testing.assert_array_equal(data.records.pixels(index, color), expected)
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


def test_a_changed_file_makes_new_records(tree):
    prepared(tree)
    before = record_files(tree)
    changed = tree / "benign" / "benign (1).png"
    picture(99).save(changed)
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1_000_000_000))
    data = prepared(tree)
    assert len(record_files(tree).keys() - before.keys()) == 1
    index = data.files.index("benign/benign (1).png")
    np.testing.assert_array_equal(data.records.pixels(index), np.asarray(picture(99)))
    assert data.sha256[index] == hashlib.sha256(changed.read_bytes()).hexdigest()


def test_an_added_and_a_removed_file_make_new_records(tree):
    prepared(tree)
    picture(50).save(tree / "normal" / "added.png")
    assert "normal/added.png" in prepared(tree).files
    assert len(record_files(tree)) == 2
    (tree / "benign" / "benign (0).jpg").unlink()
    data = prepared(tree)
    assert len(record_files(tree)) == 3
    assert "benign/benign (0).jpg" not in data.files
    assert len(data.files) == len(data.labels) == len(data.groups) == len(data.records) == 18


def test_two_folders_with_the_same_names_do_not_share_records(tree, tmp_path):
    other = tmp_path / "other"
    tree.rename(other)
    prepared(other)
    other.rename(tree)
    assert len(record_files(tree)) == 1
    prepared(tree)
    assert len(record_files(tree)) == 2


def test_names_with_spaces_and_umlauts_come_through(tree):
    (tree / "größer als 5 mm").mkdir()
    picture(60).save(tree / "größer als 5 mm" / "Aufnahme 1, é.png")
    picture(61).save(tree / "größer als 5 mm" / "2.PNG")
    data = prepared(tree)
    assert data.classes == ("benign", "größer als 5 mm", "malignant", "normal")
    assert "größer als 5 mm/Aufnahme 1, é.png" in data.files
    assert "größer als 5 mm/2.PNG" in data.files


# --- near-duplicates ---------------------------------------------------------------------------


def test_without_duplicates_each_image_is_a_group(tree):
    data = prepared(tree)
    assert len(set(data.groups.tolist())) == 18
    assert data.duplicate_groups == 0


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


def test_the_threshold_decides_what_is_a_near_duplicate(tree):
    noisy = np.asarray(PIL.Image.open(tree / "normal" / "normal (1).png")).astype(float)
    noisy += np.random.default_rng(0).normal(0, 8, noisy.shape)
    noisy = noisy.clip(0, 255).astype(np.uint8)
    PIL.Image.fromarray(noisy).save(tree / "normal" / "noisy.png")
    assert prepared(tree, threshold=0.9).duplicate_groups == 1
    assert prepared(tree, threshold=0.9999).duplicate_groups == 0
    assert len(record_files(tree)) == 1  # records do not depend on it


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


def test_raising_again_is_the_same_and_mending_helps(damaged):
    for _ in range(2):
        with pytest.raises(DataError, match="3 of 18"):
            prepared(damaged)
    for k, file in enumerate(REASONS):
        picture(80 + k).save(damaged / file)
    assert len(prepared(damaged).files) == 18


def test_raise_shows_ten_files_and_counts_the_rest(tree):
    for path in sorted(tree.rglob("*.*"))[:13]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"13 of 18 images.* and 3 more") as caught:
        prepared(tree)
    assert str(caught.value).count("the file is empty") == 10


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
    data.records._digests[3] = "0" * 64
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
    """Of 240 MB of files some twenty are in memory: sixteen chunks of one and what is at work."""
    rng = np.random.default_rng(0)
    for k in range(240):
        path = tmp_path / "data" / "ab"[k % 2] / f"{k}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
        PIL.Image.fromarray(pixels).resize((600, 555)).save(path)
    tracemalloc.start()
    data = prepared(tmp_path / "data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.files) == 240
    assert peak < 110e6


def test_two_processes_prepare_at_once(tree):
    command = [sys.executable, "-c", _PREPARE, str(tree)]
    options = {"cwd": REPOSITORY, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes = [subprocess.Popen(command, text=True, **options) for _ in range(3)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert len(record_files(tree)) == 1


def test_official_parts_sizes_and_modes_are_kept(tmp_path):
    root = tmp_path / "brain"
    for part in ("Training", "Testing"):
        for k, label in enumerate(("glioma", "meningioma", "notumor", "pituitary")):
            (root / part / label).mkdir(parents=True)
            picture(k + 10 * (part == "Testing")).convert("L").save(root / part / label / "1.png")
    data = prepared(root, name="brain_tumor")
    assert dict(zip(data.files, data.official, strict=True))["Testing/notumor/1.png"] == "test"
    assert set(data.modes) == {"L"}
    for file, (height, width) in zip(data.files, data.sizes.tolist(), strict=True):
        assert PIL.Image.open(root / file).size == (width, height)


def test_some_classes_can_be_chosen(tree):
    cache = tree.parent / "cache"
    options = {"on_error": "raise", "near_duplicate_threshold": 0.99}
    data = prepare("image_folder", tree, cache, classes=("normal", "benign"), **options)
    assert data.classes == ("benign", "normal")
    assert len(data.files) == 12
    with pytest.raises(DataError, match=r"data\.classes names cyst; .* has benign, malig"):
        prepare("image_folder", tree, cache, classes=("normal", "cyst"), **options)


def test_opencv_decodes_kinds_of_files_that_it_decodes_alike(tmp_path):
    rng = np.random.default_rng(0)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for k in range(80):  # more than are tried
        image = PIL.Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8))
        path = tmp_path / "data" / "ab"[k % 2] / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if k % 4 == 3:
            image.save(path, exif=exif)  # OpenCV would not turn it
        elif k % 4 == 2:
            image.save(path.with_suffix(".tiff"))
        else:
            image.save(path)
    data = prepared(tmp_path / "data")
    for file, fast in zip(data.files, data.records._fast, strict=True):
        assert fast == (int(Path(file).stem) % 4 < 2)


def test_a_kind_of_which_one_file_disagrees_is_not_left_to_opencv():
    kinds = np.array(["agrees", "agrees", "differs", "differs", "untried", ""])
    fast = _fast(kinds, np.array([1, -1, 1, 0, -1, -1]))
    assert fast.tolist() == [True, True, False, False, False, False]


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
        DataError, match=r"data\.group_pattern '\(q\)' matches the name of none of 20"
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


def test_records_are_read_where_nothing_can_be_written(tree):
    prepared(tree)
    folder = next((tree.parent / "cache").rglob("index.npz")).parent
    folder.with_suffix(".lock").unlink()
    folder.with_suffix(".lock").mkdir()  # locking it would fail
    assert len(prepared(tree).files) == 18


def test_a_pipe_is_no_image(tree):
    os.mkfifo(tree / "normal" / "pipe.png")
    assert len(prepared(tree).files) == 18


def test_a_link_to_nothing_is_an_unreadable_image(tree):
    link = next(tree.rglob("*.*")).with_name("link.png")
    link.symlink_to(tree / "nowhere.png")
    with pytest.raises(DataError, match=r"1 of 19.*link\.png.*No such file"):
        prepared(tree)
    data = prepared(tree, on_error="skip")
    assert len(data.files) == 18
    assert "link.png" in data.skipped[0]


def test_skip_and_raise_share_records(tree):
    prepared(tree, on_error="skip")  # as the audit does
    written = record_files(tree)
    prepared(tree, on_error="raise")
    assert record_files(tree) == written


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


def test_empty_class_is_named(tree):
    (tree / "zebra").mkdir()
    (tree / "zebra" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="'zebra' is empty"):
        prepared(tree)


def test_fewer_than_two_classes_are_refused(tmp_path):
    (tmp_path / "data" / "only").mkdir(parents=True)
    picture(0).save(tmp_path / "data" / "only" / "a.png")
    with pytest.raises(DataError, match="two or more classes; found: only"):
        prepared(tmp_path / "data")


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


def test_phantoms_do_not_mix_with_images_of_others(tree):
    with pytest.raises(DataError, match=r"data\.dir.*holds other files"):
        prepared(tree, name="phantoms")


# --- what is not imported ------------------------------------------------------------------------

_PREPARE = """
import sys
from pathlib import Path
from egmae_jax.data.prepare import prepare
from egmae_jax.core.files import DamagedFileError
folder = Path(sys.argv[1])
data = prepare("image_folder", folder, folder.parent / "cache", on_error="raise",
               near_duplicate_threshold=0.99)
data.records.pixels(0)
heavy = {"tensorflow", "torch", "torchvision", "timm"} & set(sys.modules)
print(len(data.files), sorted(heavy))
"""


def test_preparing_imports_neither_tensorflow_nor_torch(tree):
    done = subprocess.run(
        [sys.executable, "-c", _PREPARE, str(tree)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "18 []\n"  # and TFDS prints nothing of its own


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
        assert data.records._packed[index] == ("noise" in file)
        expected = images.decode((tmp_path / "data" / file).read_bytes())
        np.testing.assert_array_equal(data.records.pixels(index), np.asarray(expected))


def test_an_index_that_does_not_belong_to_the_records_is_named(tree):
    data = prepared(tree)
    index = data.records._packed.index(True)
    data.records._sizes[index] = [7, 11]
    with pytest.raises(DamagedFileError, match="delete it"):
        data.records.pixels(index)


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
        assert f"{count} images, such as" in str(caught.value)
    assert not (tmp_path / "cache").exists()  # nothing was read
    options = OPTIONS | {"classes": ("other", alike[1])}
    with pytest.raises(DataError, match="look alike"):  # also where one of them is asked for
        prepare(name, root, tmp_path / "cache", **options)


@pytest.mark.parametrize("label", ["nan", "None", "NA", "N/A", "null"])
def test_a_label_that_stands_for_a_missing_one_stops_unless_it_is_named(tmp_path, label):
    root = table_of(tmp_path / "data", [("cat", ""), (label, ""), ("dog", ""), ("dog", "")])
    message = f"1 images have the label '{label}', which stands for a missing one, such as 1.png"
    with pytest.raises(DataError, match=message):
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
    assert "data.classes: taken 'normal' for 'Normal', 'benign' for 'BENIGN'" in caplog.text
    with pytest.raises(DataError, match="names the class 'normal' twice"):
        prepare("image_folder", tree, cache, classes=("Normal", "normal"), **OPTIONS)
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


@pytest.mark.parametrize(
    ("pattern", "named", "unnamed"),
    [
        (r"(p\d+)?_?\d", {"p7_1", "p7_2"}, 18),  # matches every name, elsewhere nothing
        (r"^(p?\d*)", {"p7_1", "p7_2"}, 18),  # likewise, with empty text
        (r"(p\d+)_|(q\d+)", {"p7_1", "p7_2"}, 18),
    ],
)
def test_names_that_tell_nobody_are_not_one_patient(tree, caplog, pattern, named, unnamed):
    for k, name in enumerate(sorted(named)):
        picture(100 + k).save(tree / "normal" / f"{name}.png")
    cache = tree.parent / "cache"
    with caplog.at_level(logging.INFO, logger="egmae_jax"):
        data = prepare("image_folder", tree, cache, group_pattern=pattern, **OPTIONS)
    sizes = np.bincount(data.groups)[data.groups]
    together = {Path(file).stem for file, n in zip(data.files, sizes, strict=True) if n > 1}
    assert together == named
    assert "data.group_pattern finds 1 groups" in caplog.text
    assert f"finds nothing, or an empty match, in {unnamed} of 20 names" in caplog.text
    assert " and 8 more" in caplog.text


def test_a_pattern_that_matches_only_empty_text_stops(tree):
    with pytest.raises(DataError, match="matches only empty text in the names of 18 files"):
        prepare("image_folder", tree, tree.parent / "cache", group_pattern="(x)?", **OPTIONS)


def test_a_pattern_that_names_every_image_alone_is_told(tree, caplog):
    prepare("image_folder", tree, tree.parent / "cache", group_pattern=r"(.*)\.", **OPTIONS)
    assert "finds as many groups as names" in caplog.text
    assert "no two images are kept together by it" in caplog.text


def test_what_lies_beside_the_classes_is_told(tree, caplog):
    picture(1).save(tree / "loose.png")
    (tree / "readme.txt").touch()
    prepared(tree)
    assert "being in no class folder: 1 images (loose.png)" in caplog.text
