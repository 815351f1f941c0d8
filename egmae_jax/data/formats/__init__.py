"""Which files are images, and a reader for each format that needs its own.

A file with a known suffix counts as an image; where its bytes are none, reading it says so. Of
every other file, such as DICOM without suffix, the first bytes decide.
"""

import re
from pathlib import Path

import PIL.Image

from egmae_jax.data.formats import dicom, tiff

JPEG = b"\xff\xd8\xff"  # with which its files begin
PILLOW = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")  # other formats start programs, or hold many images
SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
        *(".dcm", ".dicom"),
    }
)
# What counts as an image, in words.
KNOWN = (
    f"{', '.join(sorted(SUFFIXES))}, and under other names JPEG, PNG, TIFF, BMP, WebP and DICOM by "
    "their bytes"
)
# Raw photographs begin as TIFF files do, but what a TIFF reader finds first in them is a thumbnail.
_RAW = frozenset(
    {
        *(".dng", ".nef", ".nrw", ".cr2", ".arw", ".sr2", ".pef", ".srw", ".3fr", ".iiq", ".dcr"),
        *(".kdc", ".erf", ".mef", ".mos"),
    }
)
_DICOMDIR = re.compile(rb"UI..1\.2\.840\.10008\.1\.3\.10\0?", re.DOTALL)  # an index of DICOM files


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its suffix or, where that is not known, by its bytes."""
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
        return True  # reading it says that it is too large
    except OSError:  # Pillow's refusal, or the system's
        return False
    return True
