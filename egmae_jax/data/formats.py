"""Which files are images: known suffixes are taken at their word, all others told by their bytes.

A file with a known suffix is an image to whoever lists it; where its bytes are none, reading it
says so. Of every other file, such as DICOM without suffix, the first bytes decide.
"""

import re
from pathlib import Path

from egmae_jax.data import dicom

READ = ("JPEG", "PNG", "TIFF", "BMP", "WebP", "DICOM")  # the formats that `images.decode` reads
SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
        *(".dcm", ".dicom"),
    }
)
# Begin as TIFF files do, but what a TIFF reader finds first in them is a thumbnail.
_RAW = frozenset(
    {
        *(".dng", ".nef", ".nrw", ".cr2", ".arw", ".sr2", ".pef", ".srw", ".3fr", ".iiq", ".dcr"),
        *(".kdc", ".erf", ".mef", ".mos"),
    }
)
_HEAD = 1024  # bytes that are read of a file
_DICOMDIR = re.compile(rb"UI..1\.2\.840\.10008\.1\.3\.10\0?", re.DOTALL)  # an index of DICOM files

_SIGNATURES: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (name, re.compile(pattern, re.DOTALL))
    for name, pattern in (
        ("JPEG", rb"\xff\xd8\xff"),
        ("PNG", rb"\x89PNG\r\n\x1a\n"),
        ("TIFF", rb"II[*+]\0|MM\0[*+]"),
        ("BMP", rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0"),  # the size of its header
        ("WebP", rb"RIFF.{4}WEBP"),
        # Those that are not read, to say what they are.
        ("GIF", rb"GIF8[79]a"),
        ("HEIC", rb".{4}ftyp(hei|hev|mif1|msf1)"),
        ("AVIF", rb".{4}ftypavi[fs]"),
        ("video", rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3|\0\0\x01\xba"),
        ("JPEG 2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
        ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
        ("NIfTI", rb".{344}n[i+]1\0|.{4}n[i+]2\0"),
        ("gzip", rb"\x1f\x8b"),
        ("MetaImage", rb"ObjectType *="),
        ("NRRD", rb"NRRD000"),
        ("NumPy", rb"\x93NUMPY"),
        ("HDF5", rb"\x89HDF\r\n\x1a\n"),
        ("MATLAB", rb"MATLAB \d"),
        ("OpenEXR", rb"\x76\x2f\x31\x01"),
        ("PNM", rb"P[1-7]\s"),
        ("Photoshop", rb"8BPS"),
        ("icon", rb"\0\0\x01\0.\0"),
        ("SVG", rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg"),
        ("PDF", rb"%PDF-"),
        ("zip", rb"PK\x03\x04"),
    )
)


def sniff(head: bytes) -> str:
    """The format of a file by its first kilobyte: one of READ, another that is known, or ''."""
    if dicom.is_dicom(head):
        return "DICOMDIR" if _DICOMDIR.search(head) else "DICOM"
    return next((name for name, pattern in _SIGNATURES if pattern.match(head)), "")


def format_of(path: Path) -> str:
    """The format of a file by its first bytes, whatever its name; see `sniff`.

    Raises:
        OSError: it cannot be opened.
    """
    if path.suffix.lower() in _RAW:
        return "raw photograph"
    with path.open("rb") as file:
        return sniff(file.read(_HEAD))


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix or, where that is not known, by its bytes."""
    try:
        return path.suffix.lower() in SUFFIXES or format_of(path) in READ
    except OSError:
        return False
