"""DICOM against the formulas of PS3.3: C.7.6.3.1 (pixels), C.11.1 (modality), C.11.2 (VOI)."""

import io
import itertools

import imagecodecs
import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import images, records
from egmae_jax.data.images import UnreadableImageError
from tests.damage import little_memory
from tests.data.writers import (
    RIGHT,
    SYNTAXES,
    dicom,
    extremes,
    prepare_folder,
    ramp,
    spread,
    steps,
    table,
)

pydicom = pytest.importorskip("pydicom")


def linear(values, center, width):
    """PS3.3, C.11.2.1.2.1, from 0 to 255."""
    low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    between = ((values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5) * 255
    return np.where(values <= low, 0, np.where(values > high, 255, between))


def linear_exact(values, center, width):
    """PS3.3, C.11.2.1.3.2, from 0 to 255."""
    between = ((values - center) / width + 0.5) * 255
    low, high = center - width / 2, center + width / 2
    return np.where(values <= low, 0, np.where(values > high, 255, between))


def sigmoid(values, center, width):
    """PS3.3, C.11.2.1.3.1, from 0 to 255."""
    return 255 / (1 + np.exp(-4 * (values - center) / width))


WINDOWS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}


def dicom_steps(*args, **elements):
    return steps(dicom(*args, **elements))


def changed(encoded, change):
    """A DICOM file's bytes after `change(dataset)`."""
    dataset = pydicom.dcmread(io.BytesIO(encoded))
    change(dataset)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.filterwarnings("error")
def test_dicom(bits, signed, syntax):
    low, high = extremes("int" if signed else "uint", bits)
    row = ramp(low, high)
    cells = (
        [(8, 7), (16, 15)] if bits == 8 else [(16, bits - 1), (16, 15)]
    )  # BitsAllocated, HighBit
    if syntax == "rle":  # pydicom writes one byte of values of 8 bits, whatever is allocated
        cells = cells[:1]
    all_views = syntax == "explicit" and bits in (8, 12)
    for (allocated, place), colours, rescale, view in itertools.product(
        cells, ("MONOCHROME1", "MONOCHROME2"), (None, (2.5, 100)), (None, *WINDOWS)
    ):
        if view not in (None, "LINEAR") and not all_views:
            continue
        elements, values = {}, row.astype(float)
        if rescale:
            elements["RescaleSlope"], elements["RescaleIntercept"] = rescale
            values = rescale[0] * values + rescale[1]
        right = 255 * (values - values.min()) / np.ptp(values)
        if view:
            center, width = np.median(values).round(), (0.8 * np.ptp(values)).round()
            elements |= {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": view}
            right = WINDOWS[view](values, center, width)
        right = 255 - right if colours == "MONOCHROME1" else right
        options = {"bits": bits, "allocated": allocated, "high": place, "signed": signed}
        encoded = dicom(
            spread(row), syntax=syntax, garbage=0xA5A5, colours=colours, **options, **elements
        )
        np.testing.assert_allclose(
            steps(encoded), right, atol=0.51, err_msg=f"{options} {elements}"
        )


@pytest.mark.parametrize("groups", ["shared", "frame"])
@pytest.mark.parametrize("function", WINDOWS)
def test_dicom_functional_groups(function, groups):
    row = ramp(0, 4095)
    result = dicom_steps(
        *(spread(row),),
        **{"bits": 12, "groups": groups, "RescaleSlope": 2, "RescaleIntercept": -1000},
        **{"WindowCenter": 2000, "WindowWidth": 4000, "VOILUTFunction": function},
    )
    right = WINDOWS[function](2.0 * row - 1000, 2000, 4000)
    np.testing.assert_allclose(result, right, atol=0.51)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.filterwarnings("error")
def test_dicom_voi_table(bits, vr, signed):
    first = -4 if signed else 20
    stored = spread(first + np.arange(8))
    up = ramp(0, 2**bits - 1).astype(int)
    for entries in (up, up[::-1], [*up[::2], *up[1::2][::-1]], up // 2 + up[1], [up[3]] * 8):
        entries = np.asarray(entries)
        right = 255 * (entries - entries.min()) / max(np.ptp(entries), 1)
        for declared, colours in ((bits, "MONOCHROME1"), (16, "MONOCHROME2")):
            expected = 255 - right if colours == "MONOCHROME1" else right
            options = {"signed": signed, "colours": colours}
            options["VOILUTSequence"] = [table(entries, first, declared, vr)]
            np.testing.assert_allclose(dicom_steps(stored, **options), expected, atol=0.51)
        if not signed:  # with a rescale that makes the values negative
            options |= {"VOILUTSequence": [table(entries, first - 100, bits, vr)]}
            options |= {"RescaleSlope": 1, "RescaleIntercept": -100}
            np.testing.assert_allclose(dicom_steps(stored, **options), right, atol=0.51)


@pytest.mark.parametrize(
    ("entries", "first", "vr", "right"),
    [
        ([100, 200, 300], 3, "US", [0, 0, 0, 0, 127.5, 255, 255, 255]),  # values beyond its ends
        ([-700, -600, -500, -400, -300, -200, -100, 0], 0, "SS", RIGHT),
    ],
)
def test_dicom_table_of_fewer_and_of_signed_entries(entries, first, vr, right):
    voi = table(entries, first, 16, vr)
    result = dicom_steps(spread(np.arange(8)), VOILUTSequence=[voi])
    np.testing.assert_allclose(result, right, atol=0.51)


@pytest.mark.parametrize("syntax", ["explicit", "big"])
def test_dicom_table_of_8_bits_packed_in_words(syntax):
    from pydicom.dataelem import DataElement

    voi = table(RIGHT, 0, 8)
    packed = RIGHT.astype(np.uint8).view("<u2").astype(">u2" if syntax == "big" else "<u2")
    voi[0x00283006] = DataElement(0x00283006, "OW", packed.tobytes())
    result = dicom_steps(spread(np.arange(8)), syntax=syntax, VOILUTSequence=[voi])
    np.testing.assert_array_equal(result, RIGHT)


@pytest.mark.parametrize("signed", [False, True])
def test_dicom_modality_table(signed):
    first = -3 if signed else 5
    entries = [0, 5, 60, 1000, 2000, 50000, 60000, 65535]
    options = {"signed": signed, "ModalityLUTSequence": [table(entries, first, 16)]}
    result = dicom_steps(spread(first + np.arange(8)), **options)
    np.testing.assert_allclose(result, 255 * np.array(entries) / 65535, atol=0.51)
    window = {"WindowCenter": 1000.5, "WindowWidth": 2001}
    result = dicom_steps(spread(first + np.arange(8)), **options, **window)
    np.testing.assert_allclose(result, linear(np.array(entries), 1000.5, 2001), atol=0.51)


@pytest.mark.parametrize("limit", [None, 3, -2])
@pytest.mark.parametrize("colours", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("signed", "value"), [(True, -2000), (True, 2000), (False, 0), (False, 4095)]
)
@pytest.mark.parametrize("rescale", [(1, 0), (2, -1000)])
@pytest.mark.parametrize("view", [None, "LINEAR", "table"])
@pytest.mark.filterwarnings("error")
def test_dicom_padding(view, rescale, signed, value, colours, limit):
    bits = 16 if signed else 12
    row = ramp(1000, 1700) - (500 if signed else 0)
    row[2] = value
    elements = {"PixelPaddingValue": value}
    if limit is not None:
        if not 0 <= value + limit < 4096 and not signed:
            limit = -limit
        elements["PixelPaddingRangeLimit"] = value + limit
        row[5] = value + np.sign(limit)
    padding = np.isin(row, [value, value + np.sign(limit or 0)])
    elements["RescaleSlope"], elements["RescaleIntercept"] = rescale
    values = rescale[0] * row.astype(float) + rescale[1]
    kept = values[~padding]
    right = 255 * (values - kept.min()) / np.ptp(kept)
    if view == "LINEAR":
        elements |= {"WindowCenter": kept.mean(), "WindowWidth": np.ptp(kept) // 2}
        right = linear(values, kept.mean(), np.ptp(kept) // 2)
    elif view == "table":
        first = int(kept.min())
        entries = np.arange(int(np.ptp(kept)) + 1)
        elements["VOILUTSequence"] = [table(entries, first, 16)]
    if colours == "MONOCHROME1":
        right = 255 - right
    right[padding] = 0
    result = dicom_steps(spread(row), bits=bits, signed=signed, colours=colours, **elements)
    np.testing.assert_allclose(result, right, atol=0.51)


@pytest.mark.parametrize("elements", [{}, {"PixelPaddingValue": 700, "colours": "MONOCHROME1"}])
def test_dicom_of_one_value_or_padding_alone_is_black(elements):
    assert (dicom_steps(spread([700] * 8), **elements) == 0).all()


def test_dicom_padding_written_in_the_other_sign():
    from pydicom.dataelem import DataElement

    row = np.array([-2000, 0, 100, 200, 300, 400, 500, 700])
    padding = DataElement(0x00280120, "US", 63536)
    encoded = changed(dicom(spread(row), signed=True), lambda dataset: dataset.add(padding))
    np.testing.assert_allclose(steps(encoded)[1:], 255 * row[1:] / 700, atol=0.51)


def padded(row, cell, value):
    """A DICOM file of 12 bits in cells of 16, the first of them `cell`, with this padding."""
    from pydicom.dataelem import DataElement

    def change(dataset):
        cells = np.frombuffer(dataset.PixelData, "<u2").copy()
        cells[cells == row[0]] = cell
        dataset.PixelData = cells.tobytes()
        dataset.add(DataElement(0x00280120, "US", value))

    return changed(dicom(spread(row), bits=12), change)


def test_dicom_padding_of_more_bits_than_are_stored():
    row = np.array([0x830, 0, 100, 200, 300, 400, 500, 700])
    expected = [0, *np.round(255 * row[1:] / 700)]
    for cell in (0xF830, 0x830):  # where it is written with these bits
        np.testing.assert_allclose(steps(padded(row, cell, cell)), expected, atol=1)
    row[0] = 4095
    with pytest.raises(UnreadableImageError, match="PixelPaddingValue 65535 has more bits than"):
        images.decode(padded(row, 4095, 65535))
    row[0] = 0  # no pixel could be it
    np.testing.assert_allclose(steps(padded(row, 0, 65535)), np.round(255 * row / 700), atol=1)


def palette(red, first, bits, form):
    """Elements of a palette of red and blue entries, of which green is the opposite."""
    elements = {}
    for name, column in {"Red": red, "Green": red.max() - red, "Blue": red}.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [len(column), first, bits]
        elements[f"{name}PaletteColorLookupTableData"] = column.astype(form).tobytes()
    return {"colours": "PALETTE COLOR", **elements}


@pytest.mark.parametrize("first", [0, 200, 1000])
@pytest.mark.parametrize(
    ("bits", "form", "syntax"),
    [
        *((8, "u1", "explicit"), (8, "u1", "implicit"), (8, "<u2", "explicit")),
        *((16, "<u2", "explicit"), (16, "<u2", "implicit"), (16, ">u2", "big")),
    ],
)
@pytest.mark.parametrize("count", [8, 300])
def test_dicom_palette(count, bits, form, syntax, first):
    red = np.full(count, 2**bits - 1)
    red[:8] = ramp(0, 2**bits - 1)
    elements = palette(red, first, bits, form)
    row = first + np.arange(8)
    encoded = dicom(spread(row), syntax=syntax, **elements)
    np.testing.assert_array_equal(steps(encoded), RIGHT)
    np.testing.assert_array_equal(steps(encoded, channel=1), 255 - RIGHT)
    row[7] = first + count + 700  # beyond the table: its last entry
    encoded = dicom(spread(row), syntax=syntax, **elements)
    np.testing.assert_array_equal(steps(encoded), [*RIGHT[:7], 255])


def test_dicom_palette_of_8_bits_declared_as_16():
    encoded = dicom(spread(np.arange(8)), **palette(RIGHT, 0, 16, "<u2"))
    np.testing.assert_array_equal(steps(encoded), RIGHT)


@pytest.mark.parametrize(("bits", "allocated"), [(8, 8), (12, 16), (16, 16)])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_dicom_rgb(syntax, bits, allocated):
    grey = spread(ramp(0, 2**bits - 1))
    rgb = np.stack([grey, grey[:, ::-1], grey], axis=-1)
    encoded = dicom(rgb, bits=bits, allocated=allocated, syntax=syntax, colours="RGB")
    np.testing.assert_array_equal(steps(encoded), RIGHT)
    np.testing.assert_array_equal(steps(encoded, channel=1), RIGHT[::-1])


def test_dicom_ybr():
    grey = spread(RIGHT)
    ybr = np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], axis=-1)
    encoded = dicom(ybr, bits=8, allocated=8, colours="YBR_FULL")
    np.testing.assert_allclose(steps(encoded), RIGHT, atol=1)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
def test_dicom_of_lossless_codecs(bits, signed):
    from pydicom import uid
    from pydicom.encaps import encapsulate

    low, high = extremes("int" if signed else "uint", bits)
    row = ramp(low, high)
    frame = imagecodecs.jpeg2k_encode(
        spread(row).astype(np.int16 if signed else np.uint16),
        level=0, codecformat="j2k", bitspersample=bits, reversible=True,
    )  # fmt: skip

    def change(dataset):
        dataset.PixelData = encapsulate([frame])
        dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless

    encoded = changed(dicom(spread(row), bits=bits, signed=signed), change)
    np.testing.assert_allclose(steps(encoded), RIGHT, atol=1)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.filterwarnings("error")
def test_dicom_without_preamble(meta, syntax):
    encoded = dicom(spread(ramp(0, 65535)), syntax=syntax, preamble=False, meta=meta)
    assert encoded[128:132] != b"DICM"
    np.testing.assert_array_equal(steps(encoded), RIGHT)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"WindowCenter": 5, "WindowWidth": 0.5}, r"WindowWidth is 0.5; for a LINEAR window.*at"),
        (
            {"WindowCenter": 5, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
            "SIGMOID window it must be above 0",
        ),
        (
            {"WindowCenter": 5, "WindowWidth": 5, "VOILUTFunction": "CUBIC"},
            "CUBIC is not supported",
        ),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "RescaleSlope is 0"),
        ({"PresentationLUTShape": "INVERSE"}, "contradict each other"),
        (
            {"PresentationLUTShape": "IDENTITY", "colours": "MONOCHROME1"},
            "contradict each other: INVERSE is expected",
        ),
        ({"WindowCenter": 5, "WindowWidth": "9e9999"}, "WindowWidth inf must be finite"),
        ({"bits": 12, "allocated": 16, "HighBit": 10}, "HighBit 10.*contradict"),
        ({"colours": "RGB"}, "RGB with SamplesPerPixel 1 is not"),
        ({"colours": "PALETTE COLOR"}, "lacks RedPaletteColorLookupTableData"),
        ({"PixelPresentation": "COLOR"}, "PixelPresentation COLOR"),
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"colours": None}, "lacks PhotometricInterpretation"),
        ({"Rows": None}, "lacks Rows"),
        ({"NumberOfFrames": 10**9}, "1000000000 frames"),
        ({"Rows": 65535, "Columns": 65535}, "a decompression bomb"),
    ],
)
def test_dicom_that_is_refused(elements, message):
    with pytest.raises(UnreadableImageError, match=message):
        images.decode(dicom(spread(np.arange(8)), **elements))


def test_dicom_without_high_bit_has_it_where_the_standard_wants_it():
    encoded = dicom(spread(ramp(0, 4095)), bits=12, garbage=0xF000)
    encoded = changed(encoded, lambda dataset: dataset.pop("HighBit"))
    np.testing.assert_array_equal(steps(encoded), RIGHT)


def test_dicom_of_floats_is_refused():
    from pydicom.dataelem import DataElement

    def change(dataset):
        del dataset.PixelData
        dataset.BitsAllocated = 32
        dataset.add(DataElement(0x7FE00008, "OF", spread(RIGHT).astype("<f4").tobytes()))

    with pytest.raises(UnreadableImageError, match=r"FloatPixelData.*not supported"):
        images.decode(changed(dicom(spread(RIGHT)), change))


@pytest.mark.parametrize("width", [0.001, 0.5, 1, 3])
@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_dicom_narrow_windows(function, width):
    values = np.arange(8) * 0.001
    options = {"RescaleSlope": 0.001, "RescaleIntercept": 0, "VOILUTFunction": function}
    result = dicom_steps(spread(np.arange(8)), WindowCenter=0.003, WindowWidth=width, **options)
    np.testing.assert_allclose(result, WINDOWS[function](values, 0.003, width), atol=0.51)
    step = dicom_steps(spread(np.arange(8)), WindowCenter=4, WindowWidth=1)  # a LINEAR one
    np.testing.assert_array_equal(step, [0, 0, 0, 0, 255, 255, 255, 255])


@pytest.mark.parametrize(
    "elements",
    [
        {"NumberOfFrames": 0},
        {"NumberOfFrames": ""},
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowWidth": 400},
        {"WindowCenter": [32768, 500], "WindowWidth": [65536, 2000]},  # the first of several
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error")
def test_dicom_elements_that_change_nothing(elements):
    np.testing.assert_array_equal(dicom_steps(spread(ramp(0, 65535)), **elements), RIGHT)


@pytest.mark.parametrize("length", [200, -100])
def test_damaged_dicom_is_named(length):
    with pytest.raises(UnreadableImageError, match="DICOM"):
        images.decode(dicom(spread(RIGHT))[:length])


def test_dicom_is_prepared_and_read_once_its_decoder_is_there(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for k in range(6):
        path = tmp_path / "data" / ("cat", "dog")[k % 2] / f"{k}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom(rng.integers(0, 4000, (20, 30))))
    unreadable = (tmp_path / "data" / "cat" / "2.dcm").read_bytes()
    examine = images.examine

    def without_decoder(encoded, *arguments):
        if encoded == unreadable:
            raise UnreadableImageError("all plugins are missing dependencies")
        return examine(encoded, *arguments)

    def prepared(on_error):
        return prepare_folder(
            "image_folder", tmp_path / "data", tmp_path / "cache", on_error=on_error
        )

    with monkeypatch.context() as context:
        context.setattr(images, "examine", without_decoder)
        assert len(prepared("skip").files) == 5
    assert len(prepared("skip").files) == 5  # as the cache has it
    monkeypatch.setattr(records.dicom, "decoders", lambda: ["pydicom", "pylibjpeg"])
    data = prepared("raise")
    assert len(data.files) == 6
    assert set(data.modes) == {"DICOM"}
    expected = images.decode((tmp_path / "data" / data.files[0]).read_bytes())
    np.testing.assert_array_equal(data.records.pixels(0), np.asarray(expected))


def rewritten(syntax, pixels=None, **elements):
    """A DICOM file in another transfer syntax, of encapsulated pixels where they are given."""
    import pydicom
    from pydicom.encaps import encapsulate

    dataset = pydicom.dcmread(io.BytesIO(dicom(np.zeros((8, 8)), bits=8, allocated=8)))
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
def test_compressed_dicom_that_claims_a_huge_size_is_refused():
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


def test_deflated_dicom_is_read_if_it_inflates_to_little(monkeypatch):
    from pydicom.uid import DeflatedExplicitVRLittleEndian as DEFLATED

    assert images.decode(rewritten(DEFLATED)).size == (8, 8)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10**6)
    bomb = rewritten(DEFLATED, ImageComments="x" * 10**7)
    with pytest.raises(images.UnreadableImageError, match="a decompression bomb"):
        images.decode(bomb)
