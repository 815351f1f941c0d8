"""Writers of image files, by the standards' own words, and ramps to write: for the tests.

A ramp is of eight values, each a square of eight pixels, so that one is a block of JPEG. The right
greys of it are those of RIGHT.
"""

import io
import struct
import zlib

import numpy as np
import PIL.Image

from egmae_jax.data import images
from egmae_jax.data.listing import list_files
from egmae_jax.data.prepare import prepare
from egmae_jax.data.samples import IntensityRange

RIGHT = np.array([0, 36, 73, 109, 146, 182, 219, 255])  # k / 7 of 255
SIDE = 8  # pixels of a step, so that one is a block of JPEG


def ramp(low, high, kind="uint"):
    """[8]: k / 7 of the way from low to high, as whole numbers unless they are 'float'."""
    if kind == "float":
        return low + np.arange(8) * ((high - low) / 7)
    values = [low + (2 * (high - low) * k + 7) // 14 for k in range(8)]
    return np.array(values, np.uint64 if high >= 2**63 else np.int64)


def spread(row):
    """[8, 64]: every value as a square."""
    return np.repeat(np.repeat(np.asarray(row)[None], SIDE, axis=0), SIDE, axis=1)


def steps(encoded, intensity=IntensityRange(), channel=0):  # noqa: B008 (is not changed)
    """int [8]: what a ramp is read as, every step being of one value."""
    image = images.decode(encoded, intensity=intensity)
    array = np.asarray(image).astype(int)
    assert array.shape == (SIDE, 8 * SIDE, 3)
    blocks = array[..., channel].reshape(SIDE, 8, SIDE)
    assert (blocks == blocks[:1, :, :1]).all()
    return blocks[0, :, 0]


def of_dataset(kind, low, high):
    return IntensityRange("dataset", {kind: (low, high)})


def extremes(kind, bits):
    """The least and largest value of a type."""
    if kind == "int":
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return (0, 2**bits - 1) if kind == "uint" else (-3.5, 1000.0)


def tiff(
    values,
    bits,
    kind="uint",
    photometric=1,
    *,
    order="<",
    planar=1,
    fill=1,
    deflate=False,
    extra=(),
    tags=(),
):
    """A TIFF of one strip a plane. values: [H, W] or [H, W, channels] as they are to be stored."""
    values = values.reshape(*values.shape[:2], -1)
    height, width, channels = values.shape
    planes = [values] if planar == 1 else [values[..., k : k + 1] for k in range(channels)]
    strips = []
    for plane in planes:
        if kind == "float" or bits in (32, 64):
            name = {"uint": "u", "int": "i", "float": "f"}[kind]
            content = plane.astype(f"{order}{name}{bits // 8}").tobytes()
        elif bits == 16:
            content = plane.astype(np.int64).astype(np.uint16).astype(f"{order}u2").tobytes()
        else:  # packed from the highest bit on, rows beginning at a byte
            numbers = plane.reshape(height, -1).astype(np.int64) & (1 << bits) - 1
            ones = numbers[..., None] >> np.arange(bits - 1, -1, -1) & 1
            content = np.packbits(ones.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
        if deflate:
            content = zlib.compress(content)
        if fill == 2:
            content = bytes(int(f"{byte:08b}"[::-1], 2) for byte in content)
        strips.append(content)
    start, offsets = 8, []
    for strip in strips:
        offsets.append(start)
        start += len(strip) + len(strip) % 2
    code = {"uint": 1, "int": 2, "float": 3}[kind]
    entries = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [bits] * channels),
        259: (3, [8 if deflate else 1]),
        262: (3, [photometric]),
        266: (3, [fill]),
        273: (4, offsets),
        277: (3, [channels]),
        278: (3, [height]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [planar]),
        338: (3, list(extra)),
        339: (3, [code] * channels),
        **dict(tags),
    }
    entries = {tag: entry for tag, entry in sorted(entries.items()) if entry[1]}
    letters = {3: "H", 4: "I", 5: "I", 8: "h", 9: "i", 11: "f", 12: "d"}
    after = start + 2 + 12 * len(entries) + 4
    directory, longer = struct.pack(f"{order}H", len(entries)), b""
    for tag, (form, content) in entries.items():
        packed = struct.pack(f"{order}{len(content)}{letters[form]}", *content)
        if len(packed) > 4:
            field = struct.pack(f"{order}I", after + len(longer))
            longer += packed + b"\0" * (len(packed) % 2)
        else:
            field = packed.ljust(4, b"\0")
        count = len(content) // 2 if form == 5 else len(content)  # ratios are of two each
        directory += struct.pack(f"{order}HHI", tag, form, count) + field
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    body = b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)
    return head + body + directory + b"\0\0\0\0" + longer


def in_eight_bits(values, kind, bits):
    """The values in 0 to 255, when the type's range is black to white; of 9 to 16 the high byte."""
    low, _ = extremes(kind, bits)
    shifted = values.astype(np.int64) - low
    return shifted >> bits - 8 if bits > 8 else np.round(255 * shifted / (2**bits - 1)).astype(int)


def png(values, bits, colour_type, chunks=()):
    """values: [H, W, channels] as they are stored."""

    def chunk(name, data):
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    values = values.reshape(*values.shape[:2], -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        ones = values.astype(np.int64)[..., None] >> np.arange(bits - 1, -1, -1) & 1
        packed = np.packbits(ones.reshape(len(values), -1).astype(np.uint8), axis=1)
        rows = [row.tobytes() for row in packed]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name, data)
        for name, data in (
            (b"IHDR", header),
            *chunks,
            (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            (b"IEND", b""),
        )
    )


def dicom(
    stored,
    *,
    bits=16,
    allocated=16,
    high=None,
    signed=False,
    garbage=0,
    syntax="explicit",
    preamble=True,
    meta=True,
    colours="MONOCHROME2",
    groups=None,
    **elements,
):
    """A DICOM file's bytes.

    Args:
        stored: the values, [H, W] or [H, W, 3].
        bits, allocated, high, signed: BitsStored, BitsAllocated, HighBit (the highest of the value
            if None) and PixelRepresentation.
        garbage: what stands in the bits of a cell that are not the value's, as overlays do.
        syntax: of SYNTAXES.
        preamble, meta: whether these are written.
        groups: 'shared' or 'frame': the functional group that RescaleSlope, RescaleIntercept and
            the window are put into; None: the top.
        **elements: by keyword.
    """
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset

    high = bits - 1 if high is None else high
    cells = (np.asarray(stored).astype(np.int64) & (1 << bits) - 1) << high + 1 - bits
    mask = ((1 << bits) - 1) << high + 1 - bits
    cells |= garbage & ((1 << allocated) - 1) & ~mask
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = cells.shape[:2]
    dataset.SamplesPerPixel = 3 if cells.ndim == 3 else 1
    if cells.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = colours
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, high
    dataset.PixelRepresentation = int(signed)
    order = ">" if syntax == "big" else "<"
    content = cells.astype(f"{order}u{allocated // 8}").tobytes()
    if groups is not None:
        dataset.NumberOfFrames = 1
        group, modality, view = Dataset(), Dataset(), Dataset()
        for name in ("RescaleSlope", "RescaleIntercept"):
            setattr(modality, name, elements.pop(name))
        for name in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
            setattr(view, name, elements.pop(name))
        group.PixelValueTransformationSequence = [modality]
        group.FrameVOILUTSequence = [view]
        # What stands at the top or in the group that gives way is not of the frame.
        wrong = Dataset()
        wrong.RescaleSlope, wrong.RescaleIntercept = 7, 77
        other = Dataset()
        other.PixelValueTransformationSequence = [wrong]
        if groups == "frame":
            dataset.PerFrameFunctionalGroupsSequence = [group]
            dataset.SharedFunctionalGroupsSequence = [other]
        else:
            dataset.PerFrameFunctionalGroupsSequence = [Dataset()]
            dataset.SharedFunctionalGroupsSequence = [group]
    dataset.PixelData = content
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset["PixelData"].VR = "OB" if allocated == 8 and syntax != "implicit" else "OW"
    if syntax == "rle":
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.compress(uid.RLELossless)
    file = io.BytesIO()
    dataset.preamble = b"\0" * 128
    dataset.save_as(file, enforce_file_format=True)
    encoded = file.getvalue()
    if not meta:  # the data set alone
        (length,) = struct.unpack_from("<I", encoded, 140)
        return encoded[144 + length :]
    return encoded if preamble else encoded[132:]


SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big": "1.2.840.10008.1.2.2",
    "rle": "1.2.840.10008.1.2.1",
}


def table(entries, first, bits, vr="US"):
    """A lookup table as PS3.3, C.11.1.1.1 has it."""
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    item = Dataset()
    item.add(DataElement(0x00283002, "SS" if first < 0 else "US", [len(entries), first, bits]))
    value = [int(entry) for entry in entries]
    if vr == "OW":
        value = np.array(value, "<u2").tobytes()
    item.add(DataElement(0x00283006, vr, value))
    return item


def noise(width, height, seed=0):
    """An RGB image without structure: nothing that is off by a pixel goes unnoticed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def picture(seed, size=None):
    """Smooth RGB shapes, as different by seed as photographs, of 20 to 60 pixels if not told."""
    rng = np.random.default_rng(seed)
    size = size or tuple(int(side) for side in rng.integers(20, 61, 2))
    coarse = PIL.Image.fromarray(rng.integers(20, 236, (7, 7, 3), np.uint8))
    return coarse.resize(size, PIL.Image.Resampling.BICUBIC)


def encode(image, file_format="PNG", **options):
    """A Pillow image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def prepare_folder(name, folder, cache, *, classes=(), group_pattern="", **options):
    """The images of a data set as `prepare` reads them, with the defaults of the config."""
    listing = list_files(name, folder, classes=classes, group_pattern=group_pattern)
    return prepare(
        listing, cache, **{"on_error": "raise", "near_duplicate_threshold": 0.99} | options
    )
