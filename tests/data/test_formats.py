"""Files known by their bytes: Pillow writes them, under names that say nothing."""

import io

import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import datasets, formats
from egmae_jax.data.datasets import DataError
from egmae_jax.data.datasets.folders import find_given
from tests.data.writers import encode, noise, prepare_folder

DICOM = bytes(128) + b"DICM\x02\0\0\0UL\x04\0" + bytes(200)
# The meta header of a DICOMDIR, an index of files: its class is 1.2.840.10008.1.3.10.
DICOMDIR = (
    *(bytes(128), b"DICM\x02\0\0\0UL\x04\0", bytes(4)),
    *(b"\x02\0\x02\0UI\x14\0", b"1.2.840.10008.1.3.10", bytes(200)),
)
IMAGES = {
    **{name: encode(noise(20, 24), name) for name in ("JPEG", "PNG", "TIFF", "BMP", "WEBP")},
    **{"big-endian TIFF": b"MM\0*" + bytes(20), "TIFF of 64 bits": b"II+\0" + bytes(20)},
    "DICOM": DICOM,
}
OTHERS = {
    **{name: encode(noise(20, 24), name) for name in ("GIF", "JPEG2000", "PPM")},
    "DICOMDIR": b"".join(DICOMDIR),
    "text": b"BM, a text that begins as a bitmap does, but is none",
    "empty": b"",
}


@pytest.mark.parametrize("kind", [*IMAGES, *OTHERS])
def test_files_are_known_by_their_bytes(kind, tmp_path):
    (tmp_path / "IM0001").write_bytes({**IMAGES, **OTHERS}[kind])
    assert formats.is_image(tmp_path / "IM0001") == (kind in IMAGES)


def test_images_of_any_name_are_read_and_others_are_counted(tmp_path, caplog):
    images = {
        "cat/a.jfif": IMAGES["JPEG"],
        "cat/c": encode(noise(20, 24, 1)),
        "cat/d.TIF": IMAGES["TIFF"],
        "dog/e.ome.tf8": encode(noise(20, 24, 2), "TIFF"),
        "dog/1.2.840.113619": encode(noise(20, 24, 3), "WEBP"),
        "dog/looks.png": encode(noise(20, 24, 4), "JPEG"),  # under another name
    }
    others = {
        **{"dog/Thumbs.db": b"\xd0\xcf\x11\xe0", "dog/clip.gif": OTHERS["GIF"]},
        **{"dog/clip2.gif": OTHERS["GIF"], "dog/raw.DNG": IMAGES["TIFF"]},
        "dog/DICOMDIR": OTHERS["DICOMDIR"],
    }
    for name, content in (images | others).items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    data = prepare_folder("image_folder", tmp_path / "data", tmp_path / "cache")
    assert set(data.files) == set(images)
    for index, file in enumerate(data.files):
        expected = PIL.Image.open(io.BytesIO(images[file])).convert("RGB")
        np.testing.assert_array_equal(data.records.pixels(index), np.asarray(expected))
    ignored = caplog.text.partition("dog because they are not images: ")[2].splitlines()[0]
    assert set(ignored.split(", ")) == {"2 .gif", "1 .db", "1 .DNG", "1 without suffix"}


def test_a_folder_of_another_format_is_not_called_empty_without_a_word(tmp_path, caplog):
    for name in ("cat/1.png", "dog/1.gif", "dog/2.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(OTHERS["GIF"])
    with pytest.raises(DataError, match=r"'dog' is empty: .*\(\.bmp, .*WebP or DICOM\)"):
        datasets.get("image_folder").list_images(tmp_path)
    assert "2 .gif" in caplog.text
    with pytest.raises(DataError, match="There are no images in"):
        find_given([tmp_path / "dog"])


def test_what_is_predicted_of_a_folder_is_known_by_its_bytes_too(tmp_path):
    (tmp_path / "scan").write_bytes(DICOM)
    (tmp_path / "b.jfif").write_bytes(IMAGES["JPEG"])
    (tmp_path / "notes").write_text("no image")
    assert find_given([tmp_path]) == [tmp_path / "b.jfif", tmp_path / "scan"]
