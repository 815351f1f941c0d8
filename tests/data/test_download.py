"""Downloads from a server on 127.0.0.1."""

import functools
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from egmae_jax.core.files import DamagedFileError
from egmae_jax.data.datasets import Archive, DataError
from egmae_jax.data.download import download


@pytest.fixture
def server(tmp_path):
    """A folder and the address it is served at; requests are counted."""
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


def make_zip(path, members, mode=None):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if mode is not None:
                info.external_attr = mode << 16
            archive.writestr(info, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_archives_are_fetched_checked_and_unpacked(server, tmp_path):
    root, url, handler = server
    digest = make_zip(root / "images.zip", {"cat/1 ä.png": b"one", "dog/2.png": b"two"})
    (root / "groups.csv").write_bytes(b"image,lesion\n")
    archives = (Archive(url + "images.zip", digest), Archive(url + "groups.csv"))
    download(archives, tmp_path / "data")
    before = handler.requests
    download(archives, tmp_path / "data")
    assert handler.requests == before  # what is there is kept
    assert (tmp_path / "data" / "cat" / "1 ä.png").read_bytes() == b"one"
    assert (tmp_path / "data" / "dog" / "2.png").read_bytes() == b"two"
    assert (tmp_path / "data" / "groups.csv").read_bytes() == b"image,lesion\n"


def test_another_checksum_is_refused_and_nothing_is_left(server, tmp_path):
    root, url, _ = server
    make_zip(root / "a.zip", {"1.png": b"one"})
    with pytest.raises(DataError, match=r"a\.zip.*hash"):
        download((Archive(url + "a.zip", "0" * 64),), tmp_path / "data")
    assert not list((tmp_path / "data").glob("*.zip"))
    assert not list((tmp_path / "data").glob("*.png"))


def test_the_first_download_fixes_the_checksum_of_the_next(server, tmp_path):
    root, url, _ = server
    make_zip(root / "a.zip", {"1.png": b"one"})
    download((Archive(url + "a.zip"),), tmp_path / "data")
    (tmp_path / "data" / "a.zip").unlink()
    make_zip(root / "a.zip", {"1.png": b"changed"})
    with pytest.raises(DataError, match="hash"):
        download((Archive(url + "a.zip"),), tmp_path / "data")
    assert (tmp_path / "data" / "1.png").read_bytes() == b"one"


def test_a_file_that_was_cut_off_is_named(server, tmp_path):
    root, url, _ = server
    digest = make_zip(root / "a.zip", {"1.png": b"one"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.zip").write_bytes((root / "a.zip").read_bytes()[:-5])
    with pytest.raises(DataError, match=r"a\.zip has SHA-256 .*delete it"):
        download((Archive(url + "a.zip", digest),), tmp_path / "data")


def test_an_address_that_does_not_answer_is_named(server, tmp_path):
    _, url, _ = server
    with pytest.raises(DataError, match=r"missing\.zip cannot be fetched.*404"):
        download((Archive(url + "missing.zip"),), tmp_path / "data")


def damaged_zip(path):
    make_zip(path, {"1.png": b"one" * 100})
    content = bytearray(path.read_bytes())
    content[40] ^= 255
    path.write_bytes(content)


def cut_tar(path):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("1.png")
        member.size = 10_000
        archive.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(10_000)))
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.zip", lambda path: path.write_text("<html>log in first</html>")),
        ("b.zip", damaged_zip),
        ("c.tgz", cut_tar),
    ],
)
def test_what_cannot_be_unpacked_is_told_and_not_held_for_the_truth(server, tmp_path, name, write):
    root, url, _ = server
    write(root / name)
    with pytest.raises(DataError, match=rf"{name} (is no archive|cannot be unpacked)"):
        download((Archive(url + name),), tmp_path / "data")
    assert not (tmp_path / "data" / "checksums.json").exists()
    (tmp_path / "data" / "checksums.json").write_text("[]")
    with pytest.raises(DamagedFileError, match=r"checksums\.json is damaged .it holds a list"):
        download((Archive(url + name),), tmp_path / "data")


def make_tar(path, name, is_link):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        if is_link:
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(member, io.BytesIO(b""))


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "is_link"),
    [
        *(("../out.png", False), ("/tmp/out.png", False), ("a/../../out.png", False)),
        *(("..\\out.png", False), ("link", True)),
    ],
)
def test_no_member_of_an_archive_leads_out_of_the_folder(server, tmp_path, suffix, name, is_link):
    root, url, _ = server
    if suffix == "zip":
        make_zip(root / "a.zip", {"1.png": b"one", name: b"/etc"}, 0o120777 if is_link else None)
    else:
        make_tar(root / "a.tar.gz", name, is_link)
    with pytest.raises(DataError, match=r"leads out of the folder.*nothing was unpacked"):
        download((Archive(f"{url}a.{suffix}"),), tmp_path / "data")
    assert not list(tmp_path.rglob("*.png"))
