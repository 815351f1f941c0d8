"""DICOM as 8-bit images, on files that the tests write."""

import io
import logging

import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import dicom as dicom_module
from egmae_jax.data import images, pipeline
from egmae_jax.data.prepare import prepare

pydicom = pytest.importorskip("pydicom")


def dicom(pixels, **elements):
    """A DICOM file's bytes: 16-bit grey, or 8-bit of three channels."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    bits = 8 * pixels.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def decoded(*args, **elements):
    return images.to_array(images.decode(dicom(*args, **elements)))


@pytest.fixture
def hounsfield():
    """CT values from air to bone, stored with the usual offset of 1024."""
    return np.linspace(-1000, 2000, 600).round().reshape(20, 30)


def test_the_window_decides_what_is_black_and_white(hounsfield):
    stored = (hounsfield + 1024).astype(np.uint16)
    pixels = decoded(
        stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400
    )
    # DICOM PS3.3, C.11.2.1.2: linear between centre - .5 -+ (width - 1) / 2.
    expected = np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1) * 255
    assert np.abs(pixels[..., 0] - expected).max() <= 1
    assert (pixels == pixels[..., :1]).all()


def test_of_several_windows_the_first_is_taken(hounsfield):
    stored = (hounsfield + 1024).astype(np.uint16)
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    first = decoded(stored, WindowCenter=40, WindowWidth=400, **rescale)
    both = decoded(stored, WindowCenter=[40, 500], WindowWidth=[400, 2000], **rescale)
    np.testing.assert_array_equal(first, both)


def test_without_a_window_the_extremes_are_black_and_white(hounsfield):
    pixels = decoded(hounsfield.astype(np.int16))
    expected = (hounsfield - hounsfield.min()) / np.ptp(hounsfield) * 255
    assert np.abs(pixels[..., 0] - expected).max() <= 0.51


def test_monochrome1_is_inverted(hounsfield):
    stored = (hounsfield + 1024).astype(np.uint16)
    normal = decoded(stored)
    inverted = decoded(stored, PhotometricInterpretation="MONOCHROME1")
    assert np.abs(255 - normal.astype(int) - inverted).max() <= 1


def test_colours_come_out_as_they_are():
    colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(decoded(colours), colours)


def test_an_image_of_one_value_is_black():
    assert (decoded(np.full((4, 4), 700, np.uint16)) == 0).all()


@pytest.mark.parametrize("damage", [lambda x: x[:200], lambda x: x[:-100]])
def test_damaged_files_are_unreadable(damage, hounsfield):
    encoded = damage(dicom(hounsfield.astype(np.int16)))
    with pytest.raises(images.UnreadableImageError, match="DICOM"):
        images.decode(encoded)


@pytest.mark.parametrize(
    "empty", [{"WindowCenter": None, "WindowWidth": None}, {"WindowWidth": 400}]
)
def test_an_empty_window_is_none(hounsfield, empty):
    stored = hounsfield.astype(np.int16)
    np.testing.assert_array_equal(decoded(stored, **empty), decoded(stored))


def test_a_dicom_bomb_is_refused(monkeypatch, hounsfield):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", hounsfield.size // 2 - 1)
    with pytest.raises(images.UnreadableImageError, match="decompression bomb"):
        images.decode(dicom(hounsfield.astype(np.int16)))


def test_several_frames_are_refused():
    encoded = dicom(np.zeros((4, 4), np.uint16), NumberOfFrames=2)
    with pytest.raises(images.UnreadableImageError, match="2 frames; one image is expected"):
        images.decode(encoded)


def write_folder(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for k in range(3):
            pixels = rng.integers(0, 4000, (20, 30), np.uint16)
            (tmp_path / "data" / label / f"{k}.dcm").write_bytes(dicom(pixels))


def prepare_folder(tmp_path, on_error="raise"):
    return prepare(
        "image_folder",
        tmp_path / "data",
        tmp_path / "cache",
        on_error=on_error,
        near_duplicate_threshold=0.99,
    )


def test_a_file_left_out_for_want_of_a_decoder_is_read_once_that_is_there(tmp_path, monkeypatch):
    write_folder(tmp_path)
    unreadable = (tmp_path / "data" / "cat" / "1.dcm").read_bytes()
    decode = images.examine

    def examine(encoded, *arguments):
        if encoded == unreadable:
            raise images.UnreadableImageError("all plugins are missing dependencies")
        return decode(encoded, *arguments)

    with monkeypatch.context() as without:
        without.setattr(images, "examine", examine)
        assert len(prepare_folder(tmp_path, "skip").files) == 5
    assert len(prepare_folder(tmp_path, "skip").files) == 5  # remembered
    monkeypatch.setattr(dicom_module, "decoders", lambda: ["pydicom", "pylibjpeg"])
    assert len(prepare_folder(tmp_path).files) == 6


def test_a_folder_of_dicom_files_is_prepared(tmp_path):
    write_folder(tmp_path)
    data = prepare_folder(tmp_path)
    assert len(data.files) == 6
    assert set(data.modes) == {"DICOM"}
    decoded = images.decode((tmp_path / "data" / data.files[0]).read_bytes())
    np.testing.assert_array_equal(data.records.pixels(0), np.asarray(decoded))
    view = pipeline.training_view(
        data, np.arange(6), color="rgb", resize="shorter_side", store_size=64
    )
    assert pipeline.load(view, np.arange(6)).pixels.shape == (6, 20, 30, 3)


@pytest.mark.parametrize("name", ["pydicom", "pydicom.pixels.decoders.base"])
def test_what_pydicom_logs_elsewhere_is_left_alone(name, hounsfield, caplog):
    damaged = dicom(hounsfield.astype(np.int16))[:-100]
    logger = logging.getLogger(name)
    level, disabled = logger.level, logger.disabled
    with pytest.raises(images.UnreadableImageError, match="DICOM"):
        images.decode(damaged)
    assert not caplog.records  # our error says it
    logger.warning("of somebody else")
    assert [record.message for record in caplog.records] == ["of somebody else"]
    assert (logger.level, logger.disabled) == (level, disabled)
    assert logging.getLogger("pydicom").level != logging.CRITICAL
