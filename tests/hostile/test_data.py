"""Tables, archives, images and DICOM files that somebody else has made."""

import contextlib
import io
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from egmae_jax.data import datasets, download, images, packing
from egmae_jax.data.datasets import DataError
from egmae_jax.data.samples import IntensityRange
from tests.data.writers import dicom as write_dicom
from tests.data.writers import encode, noise, png, spread, table, tiff
from tests.hostile.test_damaged_files import damaged, little_memory

# What the libraries say of odd files.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)

# --- Tables ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
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
ROWS = st.lists(st.lists(CELL | TEXT, max_size=4).map(",".join), max_size=4).map("\n".join)


@given(ROWS.map(lambda rows: f"path,label\n{rows}".encode()) | TEXT.map(str.encode) | st.binary())
@example(b"\xef\xbb\xbfpath,label\n1.png,cat\n2.png,dog\n")  # a byte order mark
@example(b"\xff\xfep\0a\0t\0h\0")
@example(b'path,label\n"1.png,cat\n2.png,dog\n')  # a quote that is not closed
@example(b"path,label\n" + b"x" * 200_000 + b",cat\n")
@settings(max_examples=100)
def test_a_manifest_lists_images_below_its_folder_or_says_what_is_wrong(listed, content):
    try:
        images = listed(content)
    except DataError as error:
        assert "manifest.csv" in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert {image.file for image in images} == {"1.png", "2.png"}
        assert all(image.label for image in images)


ISIC = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"


@pytest.fixture(scope="module")
def isic(tmp_path_factory):
    root = tmp_path_factory.mktemp("isic") / "data"
    folder = root / "ISIC2018_Task3_Training_Input"
    folder.mkdir(parents=True)
    (folder / "a.jpg").touch()
    (root.parent / "secret.jpg").touch()

    def list_images(truth, lesions="image,lesion_id\n"):
        (root / "ISIC2018_Task3_Training_GroundTruth.csv").write_bytes(truth.encode())
        (root / "ISIC2018_Task3_Training_LesionGroupings.csv").write_bytes(lesions.encode())
        return datasets.get("isic2018").list_images(root)

    return list_images


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "", "x" * 300])
def test_no_name_of_an_isic_table_leads_out_of_its_folder(isic, name):
    with pytest.raises(DataError, match=r"1 images that .* lists are not in "):
        isic(f"{ISIC}{name},1,0,0,0,0,0,0\n")


def test_an_isic_image_has_one_row(isic):
    row = "a,1,0,0,0,0,0,0\n"
    with pytest.raises(DataError, match="line 3: a is listed twice"):
        isic(ISIC + row + row)


# --- Archives ----------------------------------------------------------------------------------


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
        download.download(("https://localhost/a.zip",), folder)
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


PLAIN = {"cat/1.png": b"one", "dog/2.png": b"two" * 50}


@pytest.mark.filterwarnings("ignore")
@given(damaged(zip_of(PLAIN), 6))
@settings(max_examples=100)
def test_a_damaged_archive_leaves_all_or_nothing(content):
    files, error = unpack(content)
    assert not files or error is None


# --- Images ------------------------------------------------------------------------------------


PICTURE = noise(24, 20)
TWELVE_BITS = spread(np.arange(8)) * 585
PICTURES = [
    *(encode(PICTURE, name) for name in ("TIFF", "WEBP", "BMP", "PNG")),
    *(encode(PICTURE, "TIFF", compression=f"tiff_{name}") for name in ("lzw", "deflate")),
    encode(PICTURE, "WEBP", lossless=True),
    encode(PICTURE, "JPEG", progressive=True),
    tiff(TWELVE_BITS, 12, planar=2),
    tiff(TWELVE_BITS >> 4, 8, photometric=3, tags={320: (3, [9] * 768)}),
    tiff(TWELVE_BITS, 16, "int", deflate=True),
    png(np.stack([TWELVE_BITS] * 3, -1), 16, 2, [(b"sBIT", b"\x0c" * 3)]),
    imagecodecs.jpeg8_encode(TWELVE_BITS.astype("u2"), bitspersample=12),
]


@pytest.mark.filterwarnings("ignore")
@given(st.one_of([damaged(whole, 3) for whole in PICTURES]), st.sampled_from(["type", "declared"]))
@settings(max_examples=400)
def test_a_damaged_picture_is_an_image_or_unreadable(content, rule):
    with contextlib.suppress(images.UnreadableImageError):
        decoded = images.examine(content, IntensityRange(rule))
        assert images.to_array(decoded.image).shape[2] == 3
        packing.is_fast(content, decoded.image)  # OpenCV reads it, too


BOMB_OF_TEXT = zlib.compress(b"x" * 200_000_000)


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_what_a_png_says_besides_is_no_bomb(name):
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[name]
    bomb = png(np.asarray(PICTURE).astype(int), 8, 2, [(name, head + BOMB_OF_TEXT)])
    with little_memory(), contextlib.suppress(images.UnreadableImageError):
        assert images.decode(bomb).size == (24, 20)


# --- DICOM -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dicom():
    pytest.importorskip("pydicom")
    return write_dicom


@pytest.mark.parametrize("has_table", [False, True])
def test_damaged_dicom_is_an_image_or_unreadable(dicom, has_table):
    stored = np.arange(64).reshape(8, 8)
    elements = {"WindowCenter": 30, "WindowWidth": 40}
    if has_table:
        elements = {"preamble": False, "VOILUTSequence": [table([9], 0, 8)]}
    whole = dicom(stored, **elements)

    @pytest.mark.filterwarnings("ignore")
    @given(damaged(whole, 3))
    @settings(max_examples=150)
    def check(content):
        with contextlib.suppress(images.UnreadableImageError), little_memory():
            array = images.to_array(images.decode(content))
            assert array.dtype == np.uint8
            assert array.ndim == 3

    check()


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleSlope": "1e308", "RescaleIntercept": "1e308"},
        {"WindowCenter": 0, "WindowWidth": -5},
        {"SamplesPerPixel": 65535},
        {"BitsAllocated": 65535},
        {"BitsStored": 0},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"PixelRepresentation": 7},
        {"NumberOfFrames": 10**9},
        {"Rows": 0},
        {"Rows": 65535, "Columns": 65535},
        {"PixelData": b""},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_dicom_elements_that_lie_make_no_picture_of_nothing(dicom, elements):
    encoded = dicom(np.arange(64, dtype=np.uint16).reshape(8, 8), **elements)
    with little_memory():
        try:
            picture = images.decode(encoded)
        except images.UnreadableImageError as error:
            assert str(error)  # noqa: PT017 (either outcome is right)
        else:
            assert picture.size == (8, 8)


def rewritten(syntax, pixels=None, **elements):
    """A DICOM file in another transfer syntax, of encapsulated pixels where they are given."""
    import pydicom
    from pydicom.encaps import encapsulate

    dataset = pydicom.dcmread(io.BytesIO(write_dicom(np.zeros((8, 8)), bits=8, allocated=8)))
    dataset.file_meta.TransferSyntaxUID = syntax
    for name, value in elements.items():
        setattr(dataset, name, value)
    if pixels is not None:
        dataset.PixelData = encapsulate([pixels])
        dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_compressed_dicom_that_claims_a_huge_size_is_refused(dicom, caplog):
    from pydicom import uid

    picture = io.BytesIO()
    PIL.Image.new("L", (8, 8), 7).save(picture, "JPEG")
    whole = picture.getvalue()
    good = images.decode(rewritten(uid.JPEGBaseline8Bit, whole))
    assert np.abs(np.asarray(good).astype(int) - np.asarray(good).flat[0]).max() == 0
    start = whole.index(b"\xff\xc0") + 5  # height and width of the frame
    liar = whole[:start] + b"\xff\xff\xff\xff" + whole[start + 4 :]
    rle = b"\x01\0\0\0\x40" + bytes(59) + b"\x81\0" * 1000
    for syntax, pixels, size in (
        (uid.JPEGBaseline8Bit, liar, 8),
        (uid.JPEGBaseline8Bit, whole, 3000),
        (uid.RLELossless, rle, 60000),
    ):
        encoded = rewritten(syntax, pixels, Rows=size, Columns=size)
        with little_memory(), pytest.raises(images.UnreadableImageError):
            images.decode(encoded)
    assert not caplog.records  # with tracebacks


def test_deflated_dicom_is_read_if_it_inflates_to_little(dicom, monkeypatch):
    from pydicom.uid import DeflatedExplicitVRLittleEndian as DEFLATED

    assert images.decode(rewritten(DEFLATED)).size == (8, 8)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10**6)
    bomb = rewritten(DEFLATED, ImageComments="x" * 10**7)
    with pytest.raises(images.UnreadableImageError, match="a decompression bomb"):
        images.decode(bomb)
