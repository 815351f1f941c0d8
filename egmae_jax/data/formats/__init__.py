"""Detection of image files, and a module for each format that Pillow does not read fully.

A file with a known suffix counts as an image, even if decoding it fails later. Any other file, such
as DICOM without a suffix, counts as an image if its first bytes are those of a known format.
"""

import re
from pathlib import Path

import PIL.Image

from egmae_jax.data.formats import dicom, tiff

JPEG = b"\xff\xd8\xff"  # signature of JPEG files
# Formats that Pillow may open. For others it starts external programs, or they hold many images.
PILLOW = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
        *(".dcm", ".dicom"),
    }
)
# The files that count as images, for messages.
KNOWN = (
    f"{', '.join(sorted(SUFFIXES))}, or any other name if the content is JPEG, PNG, TIFF, BMP, "
    "WebP or DICOM"
)
# Raw photographs begin like TIFF files, but the first image in them is only a thumbnail.
_RAW = frozenset(
    {
        *(".dng", ".nef", ".nrw", ".cr2", ".arw", ".sr2", ".pef", ".srw", ".3fr", ".iiq", ".dcr"),
        *(".kdc", ".erf", ".mef", ".mos"),
    }
)
_DICOMDIR = re.compile(rb"UI..1\.2\.840\.10008\.1\.3\.10\0?", re.DOTALL)  # an index of DICOM files


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its suffix or, if that is unknown, by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(1024)
            if suffix in _RAW or _DICOMDIR.search(head):
                return False
            if dicom.is_dicom(head) or tiff.is_tiff(head):
                return True
            file.seek(0)
            PIL.Image.open(file, formats=PILLOW)
    except PIL.Image.DecompressionBombError:
        return True  # decoding it reports that it is too large
    except OSError:  # raised by Pillow for other formats, or by the system
        return False
    return True
