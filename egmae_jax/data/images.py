"""Decodes image files to uint8 pixels, and makes their views for training and evaluation."""

import base64
import contextlib
import io
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from egmae_jax.core.errors import MissingExtraError, UserError
from egmae_jax.data import samples
from egmae_jax.data.formats import JPEG, PILLOW, dicom, png, tiff
from egmae_jax.data.samples import BY_TYPE, IntensityRange, Samples

Resize = Literal["shorter_side", "squash", "pad"]
Color = Literal["rgb", "grey"]
RESIZE_MODES, COLORS = get_args(Resize), get_args(Color)
NOT_AN_IMAGE = "not an image in JPEG, PNG, TIFF, BMP, WebP or DICOM"
_LOSSY = ("JPEG", "MPO", "WEBP")
# Largest aspect ratio. Longer images are cropped to their middle: a long strip that is resized or
# padded as a whole would fill the memory.
_MAX_ASPECT = 16
# Largest aspect ratio for random crops. Longer images would be reduced so much that their shorter
# side had to be enlarged again.
_MAX_ASPECT_CROPPED = 4
# Images are reduced only by a smaller factor than this. A larger one would soften them and take
# longer than decoding, but save few pixels.
_MAX_REDUCING_FACTOR = 0.8


class UnreadableImageError(UserError):
    """The bytes cannot be decoded to an image; the message says why."""


class Decoded(NamedTuple):
    """A decoded image, with properties of its file.

    Attributes:
        image: upright 8-bit RGB image.
        mode: storage mode of the pixels: Pillow's mode ('L', 'RGB', 'P'), followed by the type of
            the values if it is not uint8 ('L;uint16', 'RGB;float32'), or 'DICOM'.
        lossy: whether the format is lossy, so that the file is much smaller than its packed pixels.
        bits: bits per value as the file declares them; 8 for fewer bits, which Pillow scales to 8.
        stored: type of the values ('uint16', 'DICOM', or '' for up to 8 bits), and the smallest and
            largest value in the file; None if these are the values of `image`.
    """

    image: PIL.Image.Image
    mode: str
    lossy: bool
    bits: int
    stored: tuple[str, float, float] | None


def decode(
    encoded: bytes, color: Color = "rgb", intensity: IntensityRange = BY_TYPE
) -> PIL.Image.Image:
    """Decodes an image file to 8-bit RGB or grey, upright according to its EXIF orientation.

    Number of bits, sign and polarity of the values are read from the tags of the file. For DICOM
    see `dicom.decode`.

    Args:
        encoded: content of the file, which determines its format.
        color: 'rgb', or 'grey' for one channel of luma. If one class of a data set is stored in
            grey and another in colour, 'grey' keeps a network from learning this difference.
        intensity: which values of files with more than 8 bits become black and white.

    Raises:
        UnreadableImageError: the bytes are empty, truncated, too large, or not an image, or their
            values are not supported; the message says which.
    """
    image = examine(encoded, intensity).image
    return image if color == "rgb" else image.convert("L")


def examine(encoded: bytes, intensity: IntensityRange = BY_TYPE) -> Decoded:
    """Decodes an image file to RGB like `decode`, and returns it with properties of the file.

    Raises:
        UnreadableImageError: the file cannot be decoded; see `decode`.
        MissingExtraError: the file is DICOM, and pydicom is not installed.
        MemoryError: the image does not fit in memory.
    """
    if not encoded:
        raise UnreadableImageError("the file is empty")
    with _convert_errors():
        if dicom.is_dicom(encoded):
            frame = dicom.decode(encoded)
            rgb = frame.image.convert("RGB")
            return Decoded(rgb, "DICOM", False, frame.bits, ("DICOM", *frame.extremes))
        if (values := _read_samples(encoded)) is not None:
            return _decode_samples(values, intensity)
        try:
            image = PIL.Image.open(io.BytesIO(encoded), formats=PILLOW)
        except PIL.UnidentifiedImageError:
            if encoded.startswith(JPEG) or tiff.is_tiff(encoded):
                raise UnreadableImageError(
                    "a damaged or truncated JPEG or TIFF, or one that is not supported (JPEG with "
                    f"more than 8 bits per value, lossless JPEG or JPEG-LS); {samples.CONVERT}"
                ) from None
            raise
        _load(image)
        return Decoded(_upright_rgb(image), image.mode, image.format in _LOSSY, 8, None)


def _read_samples(encoded: bytes) -> Samples | None:
    """Reads the values of a TIFF or 16-bit PNG file; None: Pillow should read the file.

    Raises:
        SamplesError: the values are not supported; the message says why.
    """
    if encoded.startswith(png.SIGNATURE):
        return png.read(encoded)
    return tiff.read(encoded) if tiff.is_tiff(encoded) else None


def _decode_samples(values: Samples, intensity: IntensityRange) -> Decoded:
    image = samples.to_image(values, intensity).convert("RGB")
    stored = (values.type if values.bits > 8 else "", *values.extremes)
    return Decoded(image, values.mode, False, values.bits, stored)


def stored_range(encoded: bytes) -> tuple[str, float, float] | None:
    """Returns type, smallest and largest value of a file, such as ('uint16', 0, 4095).

    Returns:
        None for up to 8 bits per value, and for DICOM files, which define black and white
        themselves.

    Raises:
        UnreadableImageError: the file cannot be decoded. Some damage goes unnoticed here and is
            detected by `examine` only.
    """
    if dicom.is_dicom(encoded):
        return None
    with _convert_errors():
        values = _read_samples(encoded)
        return (values.type, *values.extremes) if values and values.bits > 8 else None


def convert(
    image: PIL.Image.Image, color: Color = "rgb", intensity: IntensityRange = BY_TYPE
) -> PIL.Image.Image:
    """Converts a Pillow image to the result that `decode` returns for its file.

    The argument is not modified.

    Args:
        image: image that Pillow has opened, or that was created in memory.
        color: 'rgb' or 'grey'.
        intensity: which values of files with more than 8 bits become black and white.

    Raises:
        UnreadableImageError: the file cannot be decoded (see `decode`); or Pillow has already
            loaded a TIFF file, or values of more than 8 bits, without the tags that define their
            meaning.
    """
    with _convert_errors():
        if (encoded := _unloaded_bytes(image)) is not None:
            upright = examine(encoded, intensity).image
        elif image.format == "TIFF" or image.mode[0] in "IF":
            raise UnreadableImageError(
                f"an image that Pillow has loaded in mode {image.mode!r} lacks the tags that "
                "define the meaning of its values: pass the file, its bytes, or an 8-bit image"
            )
        elif image.format == "PNG" and image.mode in _NARROWED and intensity.rule != "type":
            raise UnreadableImageError(
                f"a PNG file that Pillow has loaded in mode {image.mode!r} may have had 16 bits "
                f"per value, to which data.intensity_range={intensity.rule!r} applies: pass the "
                "file or its bytes"
            )
        else:
            _load(image)
            upright = _upright_rgb(image)
    return upright if color == "rgb" else upright.convert("L")


_NARROWED = ("RGB", "RGBA", "LA")  # modes of loaded PNG files whose low byte Pillow has dropped


def _unloaded_bytes(image: PIL.Image.Image) -> bytes | None:
    """Returns the bytes of a PNG or TIFF file that Pillow has opened but not loaded, or None.

    Loaded images are not sufficient: Pillow drops the low byte of 16-bit colours and some tags.
    """
    file = getattr(image, "fp", None)
    if image.format not in ("PNG", "TIFF") or file is None:
        return None
    position = file.tell()
    file.seek(0)
    encoded = file.read()
    file.seek(position)
    return bytes(encoded)


def _load(image: PIL.Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the first frame of an MPO file is the photograph
        raise UnreadableImageError(f"{frames} frames; one image is expected")
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        raise UnreadableImageError(
            "a JPEG with four channels but without Adobe's marker does not define the meaning of "
            "its channels, nor whether 0 is full ink or none; convert it to RGB"
        )
    image.load()


def _upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # avoids Pillow's warning about transparency in palettes
    return PIL.ImageOps.exif_transpose(image).convert("RGB")


@contextlib.contextmanager
def _convert_errors() -> Iterator[None]:
    """Converts the errors that reading a file raises to UnreadableImageError."""
    try:
        yield
    except (MemoryError, MissingExtraError):  # the file may be valid
        raise
    except PIL.UnidentifiedImageError:
        raise UnreadableImageError(NOT_AN_IMAGE) from None
    except (UserError, PIL.Image.DecompressionBombError) as error:
        raise UnreadableImageError(str(error)) from None
    except Exception as error:  # noqa: BLE001 (Pillow's parsers raise many types of errors)
        raise UnreadableImageError(f"damaged, truncated or not supported: {error!r}") from None


def training_view(image: PIL.Image.Image, resize: Resize, store_size: int) -> PIL.Image.Image:
    """Makes the view from which random crops are taken: the image itself, reduced if it is large.

    Unless `resize` is 'squash', an image with a large aspect ratio is cropped to its middle first:
    above 4 for 'shorter_side', above 16 for 'pad'.

    Args:
        image: RGB or grey image.
        resize: 'shorter_side' keeps the aspect ratio; 'squash' and 'pad' make a square.
        store_size: length in pixels to which the shorter side of a large image is reduced; the
            longer side may have up to twice as many. With 'shorter_side', images up to a quarter
            larger are not reduced.
    """
    size = training_size(image.size, resize, store_size)
    if resize == "pad":
        return PIL.ImageOps.pad(_crop_aspect(image), size, PIL.Image.Resampling.BILINEAR)
    if resize == "shorter_side":
        image = _crop_aspect(image, _MAX_ASPECT_CROPPED)
    return image if image.size == size else image.resize(size, PIL.Image.Resampling.BILINEAR)


def training_size(size: tuple[int, int], resize: Resize, store_size: int) -> tuple[int, int]:
    """Returns width and height of the training view of an image with width and height `size`."""
    if resize == "squash":
        return store_size, store_size
    short, long = sorted(size)
    if resize == "pad":
        side = min(long, _MAX_ASPECT * short, store_size)
        return side, side
    long = min(long, _MAX_ASPECT_CROPPED * short)
    factor = min(store_size / short, 2 * store_size / long)
    factor = factor if factor < _MAX_REDUCING_FACTOR else 1.0
    width, height = (max(1, round(min(side, long) * factor)) for side in size)
    return width, height


def evaluation_view(
    image: PIL.Image.Image, resize: Resize, image_size: int, resized: int | None = None
) -> PIL.Image.Image:
    """Makes the evaluation view, like torchvision's Resize(resized) and CenterCrop(image_size).

    Unless `resize` is 'squash', an image with an aspect ratio above 16 is cropped to its middle
    first.

    Args:
        image: RGB or grey image.
        resize: 'shorter_side' keeps the aspect ratio; 'squash' resizes both sides; 'pad' first pads
            the image to a square with black.
        image_size: side of the view in pixels.
        resized: side in pixels before the centre crop, at least image_size; the shorter side if
            `resize` is 'shorter_side'. None: image_size, so that nothing of a square is cropped.
    """
    target = image_size if resized is None else resized
    if resize == "squash":
        full = image.resize((target, target), PIL.Image.Resampling.BILINEAR)
    elif resize == "pad":
        padded_size = (target, target)
        full = PIL.ImageOps.pad(_crop_aspect(image), padded_size, PIL.Image.Resampling.BILINEAR)
    else:
        image = _crop_aspect(image)
        short = min(image.size)
        width, height = (target * side // short for side in image.size)
        full = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    if full.size == (image_size, image_size):
        return full
    left, top = (round((side - image_size) / 2) for side in full.size)
    return full.crop((left, top, left + image_size, top + image_size))


def to_array(image: PIL.Image.Image) -> np.ndarray:
    """Converts an image to an array, uint8 [H, W, 3], or [H, W, 1] for a grey image."""
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)


def from_array(array: np.ndarray) -> PIL.Image.Image:
    """Converts an array, uint8 [H, W, 3] or [H, W, 1], to an RGB or grey image."""
    return PIL.Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])


def data_uri(image: PIL.Image.Image, file_format: str, **options: int) -> str:
    """Returns an image as a data URI, 'png' or 'webp', saved with options such as quality."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return f"data:image/{file_format};base64,{base64.b64encode(file.getvalue()).decode()}"


def _crop_aspect(image: PIL.Image.Image, max_aspect: int = _MAX_ASPECT) -> PIL.Image.Image:
    """Crops an image to its middle if its aspect ratio is larger than `max_aspect`."""
    longest = max_aspect * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
