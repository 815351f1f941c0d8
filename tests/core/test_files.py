"""Files that are whole or not there, and errors of disks that take no more."""

import contextlib
import errno
import json
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from egmae_jax.core.files import (
    AccessError,
    DamagedFileError,
    StorageError,
    explain_storage_errors,
    natural_key,
    open_atomically,
    read_json,
    read_sealed,
    require_output,
    write_atomically,
    write_json,
    write_sealed,
)
from egmae_jax.core.tensors import read_safetensors, write_safetensors
from egmae_jax.training import checkpoint
from tests.damage import either_right_or


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["größer\n", b"\x00\xff\r\n", "", b""])
def test_content_is_written_byte_for_byte(tmp_path, content):
    write_atomically(tmp_path / "file", content)
    expected = content.encode("utf-8") if isinstance(content, str) else content
    assert (tmp_path / "file").read_bytes() == expected


def test_what_a_user_would_lose_is_not_written_over(tmp_path):
    image = tmp_path / "image.csv"
    image.touch()
    require_output(tmp_path / "new.CSV", (".csv",), [image])
    require_output(image, (".csv",))
    for path, message in (
        (tmp_path / "x.png", r"x\.png must end in \.csv"),
        (image, "is one of the input files"),
    ):
        with pytest.raises(AccessError, match=message):
            require_output(path, (".csv",), [image])
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name, kind in (("folder.csv", "a folder"), ("pipe.csv", "not a regular file")):
        with pytest.raises(AccessError, match=f"{name} is {kind}"):
            require_output(tmp_path / name, (".csv",))


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "a long text " * 1000)
    reader = path.open()  # whoever reads meanwhile keeps the old file
    assert reader.read(6) == "a long"
    write_atomically(path, "short")
    assert path.read_text() == "short"
    assert len(reader.read()) == 12_000 - 6
    reader.close()
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("crash_in", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, crash_in):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def crash(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, crash_in, crash)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new and longer")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_bytes_are_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: (calls.append("fsync"), fsync(*a)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    write_atomically(tmp_path / "file", "content")
    assert calls == ["fsync", "replace"]


def test_json_round_trips_with_letters_as_they_are(tmp_path):
    value = {"name": "größer", "numbers": [1, 2.5, None], "nested": {"a": True}}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "größer" in text
    assert text.endswith("}\n")


# --- What later stages read ----------------------------------------------------------------------


_STEP = 5  # from one bit to the next that is flipped: every place in a byte has its turn


def flipped(content, bit):
    content = bytearray(content)
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


def test_no_flipped_bit_of_a_sealed_file_changes_a_number_silently(tmp_path):
    path, value = tmp_path / "x.json", {"loss": 0.12345, "trains": True, "layers": ["a", "b"]}
    write_sealed(path, value)
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), _STEP):
        path.write_bytes(flipped(content, bit))
        try:
            assert read_sealed(path) == value
        except DamagedFileError as error:
            assert str(path) in str(error)  # noqa: PT017 (either outcome is right)


def test_equal_tensors_make_equal_files(tmp_path):
    tensors = {"é": np.ones((2, 3), np.float32), "b": np.zeros((), np.int64)}
    for k in range(12):
        write_safetensors(tmp_path / str(k), tensors)
    assert len({(tmp_path / str(k)).read_bytes() for k in range(12)}) == 1
    read = safetensors.numpy.load_file(tmp_path / "0")
    assert {name: x.tolist() for name, x in read.items()} == {"é": [[1.0] * 3] * 2, "b": 0}


def test_no_flipped_bit_of_a_safetensors_file_changes_a_number_silently(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"a/w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    write_safetensors(path, tensors)
    content = path.read_bytes()
    refused = 0
    for bit in range(0, 8 * len(content), _STEP):
        path.write_bytes(flipped(content, bit))
        try:
            read = read_safetensors(path)
        except (ValueError, safetensors.SafetensorError):
            refused += 1
            continue
        assert read.keys() == tensors.keys()
        assert all(np.array_equal(x, read[name]) for name, x in tensors.items())
    assert refused >= 8 * sum(x.nbytes for x in tensors.values()) // _STEP


def raised_from(cause):
    error = RuntimeError("the writer failed")
    error.__cause__ = cause
    return error


# As tensorstore 0.1.86 and array_record 0.8.6 raise them on a full file system.
TENSORSTORE = (
    'RESOURCE_EXHAUSTED: Error writing "a/0" in OCDBT database at local file "/w/": Failed '
    'writing: "/w/d/8e18": Failed to write 75442 bytes to file 7: No space left on device '
    "[os_error_code='28']"
)
ARRAY_RECORD = "write() failed: No space left on device; writing /x.array_record; at byte 307200"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "Kein Speicherplatz mehr"),  # the number counts, not the words
        raised_from(OSError(errno.EDQUOT, "over quota")),
        raised_from(ValueError(TENSORSTORE)),
        RuntimeError(ARRAY_RECORD),
    ],
)
def test_a_disk_that_takes_no_more_is_named(tmp_path, error):
    message = rf"could not be written .*{tmp_path} has \d.* GB left.*run the same command again"
    with pytest.raises(StorageError, match=message), explain_storage_errors(tmp_path):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("space"),
        RuntimeError("NCCL failed: /dev/shm: No space left on device"),
        OSError(errno.ENOENT, "No space left on device"),
        DamagedFileError(Path("x"), "No space left on device"),
    ],
)
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as raised, explain_storage_errors(tmp_path):
        raise error
    assert raised.value is error


def _save_checkpoint(folder):
    with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, {"a": np.random.default_rng(0).random(30_000)}, {})


def _write_records(folder):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "x.array_record"), "group_size:1")
    for _ in range(40):
        writer.write(os.urandom(10_000))
    writer.close()


@pytest.mark.parametrize("write", [_save_checkpoint, _write_records])
def test_what_the_libraries_that_write_raise_is_known(tmp_path, write):
    """Where no file may grow beyond 50 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    explained = pytest.raises(StorageError, match=re.escape(os.strerror(errno.EFBIG)))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        with explained, explain_storage_errors(tmp_path):
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_is_written_bit_by_bit_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "folder" / "table.csv"
    with open_atomically(path, "w", newline="", encoding="utf-8") as file:
        file.write("ä\r\n")
        assert not path.exists()
    assert path.read_bytes() == "ä\r\n".encode()
    with contextlib.suppress(KeyboardInterrupt), open_atomically(path, "w") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_bytes() == "ä\r\n".encode()
    assert os.listdir(path.parent) == ["table.csv"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
    max_leaves=8,
)


@given(JSON.map(lambda x: json.dumps(x).encode()) | st.binary(max_size=40))
@example(b"[" * 100_000)
@example(b"9" * 5000)
@example(b'{"loss": NaN}')
@example(b"\xff\xfe{}")
def test_json_is_of_the_kind_that_is_asked_for_or_damaged(file, content):
    file.write_bytes(content)
    for kind in (dict, list):
        with either_right_or(DamagedFileError, file):
            assert type(read_json(file, kind=kind)) is kind
    with pytest.raises(DamagedFileError, match=r"file\.x is damaged"):
        read_sealed(file)


def test_a_path_that_is_no_text_comes_back_from_json(tmp_path):
    write_json(tmp_path / "x.json", {"dir": "m\udce4rz", "ok": "März"})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"dir": "m\udce4rz", "ok": "März"}


def test_numbers_in_names_sort_only_where_they_are_numbers():
    files = ["a²1.png", "²1.png", "a\u0663.png", "a (10).png", "a (2).png", "①.png"]
    ordered = sorted(files, key=natural_key)
    assert ordered.index("a (2).png") + 1 == ordered.index("a (10).png")
