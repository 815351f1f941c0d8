"""Files told by their bytes: Pillow and pydicom write them, under names that say nothing."""

import gzip
import io
import logging

import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import datasets, formats
from egmae_jax.data.datasets import DataError
from egmae_jax.data.datasets.base import find_given, find_images
from egmae_jax.data.prepare import prepare
from egmae_jax.run import config as configs
from egmae_jax.run import workdir as workdirs
from tests import tiny


def encoded(file_format, seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def dicomdir():
    """The meta header of a DICOMDIR, an index of files: its class is 1.2.840.10008.1.3.10."""
    uid = b"1.2.840.10008.1.3.10"
    element = b"\x02\0\x02\0UI" + len(uid).to_bytes(2, "little") + uid
    return bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0" + bytes(4) + element + bytes(200)


READ = {
    "JPEG": encoded("JPEG"),
    "PNG": encoded("PNG"),
    "TIFF": encoded("TIFF"),
    "BMP": encoded("BMP"),
    "WebP": encoded("WEBP"),
    "DICOM": bytes(128) + b"DICM\x02\0\0\0UL\x04\0" + bytes(200),
}
OTHERS = {
    "GIF": encoded("GIF"),
    "JPEG 2000": encoded("JPEG2000"),
    "PNM": encoded("PPM"),
    "AVIF": encoded("AVIF") if "AVIF" in PIL.Image.SAVE else b"\0\0\0\x20ftypavif",
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(40),
    "NIfTI": (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(100),
    "NumPy": (lambda b: (np.save(b, np.zeros(3)), b.getvalue())[1])(io.BytesIO()),
    "gzip": gzip.compress(b"x"),
    "PDF": b"%PDF-1.7\n",
    "DICOMDIR": dicomdir(),
    "": b"BM, a text that begins as a bitmap does, but is none",
}


@pytest.mark.parametrize("big_endian", [False, True])
def test_tiff_of_either_byte_order_and_of_64_bits_is_told(big_endian):
    order, number = (b"MM", "big") if big_endian else (b"II", "little")
    for version in (42, 43):
        assert formats.sniff(order + version.to_bytes(2, number) + bytes(20)) == "TIFF"


@pytest.mark.parametrize("kind", [*READ, *OTHERS])
def test_files_are_told_by_their_bytes(kind):
    assert formats.sniff({**READ, **OTHERS}[kind][:1024]) == kind
    assert formats.sniff(b"") == ""


def test_images_of_any_name_are_read_and_others_are_counted_by_what_they_are(tmp_path, caplog):
    files = {
        "cat/a.jfif": READ["JPEG"],
        "cat/b.JPE": encoded("JPEG", 1),
        "cat/c": encoded("PNG", 2),
        "cat/d.TIF": READ["TIFF"],
        "dog/e.ome.tf8": encoded("TIFF", 3),
        "dog/f.img": encoded("BMP", 4),
        "dog/1.2.840.113619": encoded("WEBP", 5),
        "dog/looks.png": encoded("JPEG", 6),  # under another name
        "dog/Thumbs.db": b"\xd0\xcf\x11\xe0" + bytes(600),
        "dog/readme.txt": b"no image",
        "dog/clip.gif": OTHERS["GIF"],
        "dog/clip2.gif": OTHERS["GIF"],
        "dog/scan.nii.gz": OTHERS["gzip"],
        "dog/raw.DNG": READ["TIFF"],
        "dog/DICOMDIR": OTHERS["DICOMDIR"],
    }
    for name, content in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    options = {"on_error": "raise", "near_duplicate_threshold": 0.99}
    with caplog.at_level(logging.INFO, logger="egmae_jax"):
        data = prepare("image_folder", tmp_path / "data", tmp_path / "cache", **options)
    assert set(data.files) == {*list(files)[:8]}
    for index, file in enumerate(data.files):
        expected = PIL.Image.open(io.BytesIO(files[file])).convert("RGB")
        np.testing.assert_array_equal(data.records.pixels(index), np.asarray(expected))
    assert "1 PNG without suffix" in caplog.text
    assert "1 TIFF .tf8" in caplog.text
    ignored = caplog.text.partition("being no images: ")[2].splitlines()[0]
    assert ignored.startswith("2 GIF .gif, ")
    assert set(ignored.split(", ")) == {
        *("2 GIF .gif", "1 .db", "1 .txt", "1 gzip .nii.gz", "1 raw photograph .DNG"),
        "1 DICOMDIR without suffix",
    }


def test_a_folder_of_another_format_is_not_called_empty_without_a_word(tmp_path):
    for name in ("cat/1.png", "dog/1.gif", "dog/2.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded("PNG" if "png" in name else "GIF"))
    with pytest.raises(DataError, match=r"'dog' is empty.*DICOM\); there are 2 GIF \.gif\."):
        datasets.get("image_folder").list_images(tmp_path)
    with pytest.raises(DataError, match=r"no image in .*there are 2 GIF \.gif\."):
        find_given([tmp_path / "dog"])


def test_what_is_predicted_of_a_folder_is_told_by_bytes_too(tmp_path):
    (tmp_path / "scan").write_bytes(READ["DICOM"])
    (tmp_path / "b.jfif").write_bytes(READ["JPEG"])
    (tmp_path / "notes").write_text("no image")
    assert find_given([tmp_path]) == [tmp_path / "b.jfif", tmp_path / "scan"]


def test_a_workdir_with_images_of_any_name_is_refused(tmp_path):
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "IM0001").write_bytes(READ["DICOM"])
    config = tiny.make_config(tmp_path / "data", tmp_path / "cache")
    with pytest.raises(configs.ConfigError, match=r"holds images .*IM0001"):
        workdirs.require_own_folder(tmp_path, config)


def test_only_files_of_unknown_suffix_are_opened(tmp_path, monkeypatch):
    for name in ("1.png", "2.jpeg", "3"):
        (tmp_path / name).write_bytes(READ["PNG"])
    opened = []
    real = formats.format_of
    monkeypatch.setattr(formats, "format_of", lambda path: opened.append(path.name) or real(path))
    assert len(find_images(tmp_path).images) == 3
    assert opened == ["3"]
