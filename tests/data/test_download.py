"""Downloads from a server on 127.0.0.1."""

import functools
import http.server
import io
import shutil
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest

from egmae_jax.data.datasets import DataError
from egmae_jax.data.download import download
from tests.damage import little_memory

LINK = 0o120777


@pytest.fixture
def server(tmp_path):
    """A folder, the address it is served at, and its handler, which counts the requests."""
    root = tmp_path / "served"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        requests = 0

        def do_GET(self):
            Handler.requests += 1
            super().do_GET()

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(root))
    )
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield root, f"http://127.0.0.1:{served.server_port}/", Handler
    served.shutdown()
    served.server_close()


def make_zip(path, members, mode=0o100644):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)


def test_archives_are_fetched_once_and_unpacked(server, tmp_path):
    root, url, handler = server
    make_zip(root / "images.zip", {"cat/1 ä.png": b"one", "dog/2.png": b"two"})
    (root / "groups.csv").write_bytes(b"image,lesion\n")
    for _ in range(2):
        download((url + "images.zip", url + "groups.csv"), tmp_path / "data")
    assert handler.requests == 2
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path / "data")): path.read_bytes() for path in files} == {
        "images.zip": (root / "images.zip").read_bytes(),
        "groups.csv": b"image,lesion\n",
        "cat/1 ä.png": b"one",
        "dog/2.png": b"two",
    }


def test_an_address_that_does_not_answer_is_named(server, tmp_path):
    with pytest.raises(DataError, match=r"missing\.zip cannot be downloaded.*404"):
        download((server[1] + "missing.zip",), tmp_path / "data")


@pytest.mark.parametrize("change", [lambda x: b"<html>log in first</html>", lambda x: x[:-9]])
def test_what_is_no_whole_archive_is_named(server, tmp_path, change):
    root, url, _ = server
    make_zip(root / "a.zip", {"1.png": b"one"})
    (root / "a.zip").write_bytes(change((root / "a.zip").read_bytes()))
    with pytest.raises(DataError, match=r"a\.zip cannot be unpacked .*; delete it"):
        download((url + "a.zip",), tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("../out.png", 0o100644),
        ("/tmp/out.png", 0o100644),
        ("a/../../out.png", 0o100644),
        ("link", LINK),
    ],
)
def test_no_member_of_an_archive_leads_out_of_the_folder(server, tmp_path, name, mode):
    root, url, _ = server
    make_zip(root / "a.zip", {"1.png": b"one", name: b"/etc"}, mode)
    with pytest.raises(DataError, match=r"leads out of the folder.*nothing was unpacked"):
        download((url + "a.zip",), tmp_path / "data")
    assert not list(tmp_path.rglob("*.png"))


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unpack(content):
    """What `download` leaves of an archive that is there already."""
    folder = Path(tempfile.mkdtemp())
    (folder / "a.zip").write_bytes(content)
    error = None
    try:
        download(("https://localhost/a.zip",), folder)
    except DataError as raised:
        error = str(raised)
        assert str(folder / "a.zip") in error
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    shutil.rmtree(folder)
    return files - {"a.zip"}, error


BOMB = {"small.txt": b"x", "bomb.png": b"\0" * 30_000_000}


def test_an_archive_that_unpacks_to_absurdly_much_leaves_nothing():
    with little_memory():
        files, error = unpack(zip_of(BOMB))
    assert "decompression bomb; nothing was unpacked" in error
    assert not files


def test_an_archive_that_the_disk_cannot_hold_leaves_nothing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    files, error = unpack(zip_of({"1.png": b"x" * 600, "2.png": b"y" * 600}))
    assert "has only 1000 bytes free; nothing was unpacked" in error
    assert not files


def test_tables_and_blank_images_are_no_bombs():
    members = {"a.csv": b"ISIC,0.0,1.0\n" * 9000, "blank.bmp": bytes(500_000)}
    assert unpack(zip_of(members)) == (set(members), None)
