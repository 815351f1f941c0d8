"""One image from encoded bytes to uint8 pixels, and its views for training and evaluation."""

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
NOT_AN_IMAGE = "not an image in JPEG, PNG, TIFF, BMP, WebP or DICOM"  # why a file is unreadable
_LOSSY = ("JPEG", "MPO", "WEBP")
# Of an image longer than this many times its shorter side only the middle is used: a strip, resized
# or padded as a whole, would fill the memory.
_LONGEST = 16
_LONGEST_CROPPED = 4  # of random crops: reduced further, the shorter side would be enlarged again
# Reducing an image by less takes longer than decoding it, and softens it, to save few pixels.
_WORTH_REDUCING = 0.8


class UnreadableImageError(UserError):
    """The bytes are no image that can be used; the message says why."""


class Decoded(NamedTuple):
    """An image with what its file is like.

    Attributes:
        image: 8-bit RGB, upright.
        mode: how the file stores its pixels: Pillow's mode ('L', 'RGB', 'P'), with the type of
            values that are no 8-bit ones ('L;uint16', 'RGB;float32'), or 'DICOM'.
        lossy: whether the format is, so that the file is much smaller than its packed pixels.
        bits: bits of a value as the file declares them; 8 for fewer, which Pillow stretches.
        stored: type of the values ('uint16'; 'DICOM'; '' for at most 8 bits) and the least and the
            largest that the file stores; None where these are the image's own.
    """

    image: PIL.Image.Image
    mode: str
    lossy: bool
    bits: int
    stored: tuple[str, float, float] | None


def decode(
    encoded: bytes, color: Color = "rgb", intensity: IntensityRange = BY_TYPE
) -> PIL.Image.Image:
    """Decodes an image file to 8-bit RGB or grey, upright by its EXIF orientation.

    Bits, sign and polarity of the values are read from the file's own tags. DICOM: see
    `dicom.decode`.

    Args:
        encoded: the file's bytes, which alone tell its format.
        color: 'rgb', or 'grey' for one channel of luma. Where the sources of a data set stored one
            class as grey and another as colour, 'grey' keeps that from telling the class.
        intensity: which values of files with more than 8 bits become black and white.

    Raises:
        UnreadableImageError: the bytes are empty, truncated, no image or too large, or hold values
            that cannot be read right; the message says which.
    """
    image = examine(encoded, intensity).image
    return image if color == "rgb" else image.convert("L")


def examine(encoded: bytes, intensity: IntensityRange = BY_TYPE) -> Decoded:
    """Decodes an image file as `decode`, and tells what the file is like.

    Raises:
        UnreadableImageError: as `decode`.
        MemoryError, MissingExtraError: no fault of the file's; the latter where DICOM needs
            pydicom.
    """
    if not encoded:
        raise UnreadableImageError("the file is empty")
    with _readers_errors():
        if dicom.is_dicom(encoded):
            frame = dicom.decode(encoded)
            rgb = frame.image.convert("RGB")
            return Decoded(rgb, "DICOM", False, frame.bits, ("DICOM", *frame.extremes))
        if (values := _read_samples(encoded)) is not None:
            return _of_samples(values, intensity)
        try:
            image = PIL.Image.open(io.BytesIO(encoded), formats=PILLOW)
        except PIL.UnidentifiedImageError:
            if encoded.startswith(JPEG) or tiff.is_tiff(encoded):
                raise UnreadableImageError(
                    "a damaged or truncated JPEG or TIFF, or one of a kind that is not supported "
                    f"(a JPEG of more than 8 bits a value, lossless, JPEG-LS); {samples.CONVERT}"
                ) from None
            raise
        if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
            raise UnreadableImageError(
                "a JPEG of four channels without Adobe's marker does not say which they are, nor "
                "whether 0 is ink or none; convert it to RGB"
            )
        _load(image)
        return Decoded(_upright_rgb(image), image.mode, image.format in _LOSSY, 8, None)


def _read_samples(encoded: bytes) -> Samples | None:
    """The values of a TIFF or of a PNG of 16 bits; None: Pillow reads the file.

    Raises:
        SamplesError: the values are of a kind that is not supported; names it.
    """
    if encoded.startswith(png.SIGNATURE):
        return png.read(encoded)
    return tiff.read(encoded) if tiff.is_tiff(encoded) else None


def _of_samples(values: Samples, intensity: IntensityRange) -> Decoded:
    image = samples.to_image(values, intensity).convert("RGB")
    stored = (values.type if values.bits > 8 else "", *values.extremes)
    return Decoded(image, values.mode, False, values.bits, stored)


def stored_range(encoded: bytes) -> tuple[str, float, float] | None:
    """Type of a file's values with the least and the largest, such as ('uint16', 0, 4095).

    Returns:
        None for values of at most 8 bits, and for DICOM, which says itself what is black and white.

    Raises:
        UnreadableImageError: as `examine`, though not for every damage.
    """
    if dicom.is_dicom(encoded):
        return None
    with _readers_errors():
        values = _read_samples(encoded)
        return (values.type, *values.extremes) if values and values.bits > 8 else None


def convert(
    image: PIL.Image.Image, color: Color = "rgb", intensity: IntensityRange = BY_TYPE
) -> PIL.Image.Image:
    """Converts an image that Pillow has opened or made to what `decode` returns of its file.

    The image itself stays as it is.

    Raises:
        UnreadableImageError: as `decode`, or Pillow has read a TIFF or more than 8 bits a value
            already, without the tags that say what these mean.
    """
    with _readers_errors():
        if (encoded := _unread(image)) is not None:
            upright = examine(encoded, intensity).image
        elif image.format == "TIFF" or image.mode[0] in "IF":
            raise UnreadableImageError(
                f"an image that Pillow has read in mode {image.mode!r} lacks the tags that say "
                "what its values mean: give the file, its bytes, or an image of 8 bits"
            )
        else:
            _load(image)
            upright = _upright_rgb(image)
    return upright if color == "rgb" else upright.convert("L")


def _unread(image: PIL.Image.Image) -> bytes | None:
    """Bytes of the PNG or TIFF file that Pillow has opened and not yet read; None: there is none.

    Pillow keeps the high byte of colours of 16 bits only, and not all tags.
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
    if frames > 1 and image.format != "MPO":  # a camera's: its first is the photograph
        raise UnreadableImageError(f"{frames} frames; one image is expected")
    image.load()


def _upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow warns where such a palette goes straight to RGB
    return PIL.ImageOps.exif_transpose(image).convert("RGB")


@contextlib.contextmanager
def _readers_errors() -> Iterator[None]:
    """Turns what the readers of files raise into UnreadableImageError."""
    try:
        yield
    except (MemoryError, MissingExtraError):  # no fault of the file's
        raise
    except PIL.UnidentifiedImageError:
        raise UnreadableImageError(NOT_AN_IMAGE) from None
    except (UserError, PIL.Image.DecompressionBombError) as error:
        raise UnreadableImageError(str(error)) from None
    except Exception as error:  # damaged files bring whatever Pillow's parsers stumble upon
        raise UnreadableImageError(
            f"damaged or truncated, or of a kind that is not supported: {error!r}"
        ) from None


def training_view(image: PIL.Image.Image, resize: Resize, store_size: int) -> PIL.Image.Image:
    """Makes the view from which random crops are taken: the image itself, reduced if it is large.

    Of an image longer than four times its shorter side the middle is taken.

    Args:
        image: RGB or grey.
        resize: 'shorter_side' keeps the aspect; 'squash' and 'pad' make a square.
        store_size: pixels to which the shorter side of a large image is reduced; the longer may
            have twice as many. An image up to a quarter larger stays as it is.
    """
    size = training_size(image.size, resize, store_size)
    if resize == "pad":
        return PIL.ImageOps.pad(_shorten(image), size, PIL.Image.Resampling.BILINEAR)
    if resize == "shorter_side":
        image = _shorten(image, _LONGEST_CROPPED)
    return image if image.size == size else image.resize(size, PIL.Image.Resampling.BILINEAR)


def training_size(size: tuple[int, int], resize: Resize, store_size: int) -> tuple[int, int]:
    """Width and height of the training view of an image of width and height `size`."""
    if resize == "squash":
        return store_size, store_size
    short, long = sorted(size)
    if resize == "pad":
        side = min(long, _LONGEST * short, store_size)
        return side, side
    long = min(long, _LONGEST_CROPPED * short)
    factor = min(store_size / short, 2 * store_size / long)
    factor = factor if factor < _WORTH_REDUCING else 1.0
    width, height = (max(1, round(min(side, long) * factor)) for side in size)
    return width, height


def evaluation_view(
    image: PIL.Image.Image, resize: Resize, image_size: int, resized: int | None = None
) -> PIL.Image.Image:
    """Makes the view that is evaluated: torchvision's Resize(resized) and CenterCrop(image_size).

    Args:
        image: RGB or grey.
        resize: 'shorter_side' keeps the aspect; 'squash' resizes both sides, 'pad' pads to a square
            with black first.
        image_size: side of the view in pixels.
        resized: side in pixels before the centre is cropped, the shorter one where the aspect is
            kept; at least image_size. None: image_size, so that a square loses nothing.
    """
    target = image_size if resized is None else resized
    if resize == "squash":
        whole = image.resize((target, target), PIL.Image.Resampling.BILINEAR)
    elif resize == "pad":
        whole = PIL.ImageOps.pad(_shorten(image), (target, target), PIL.Image.Resampling.BILINEAR)
    else:
        image = _shorten(image)
        short = min(image.size)
        width, height = (target * side // short for side in image.size)
        whole = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    if whole.size == (image_size, image_size):
        return whole
    left, top = (round((side - image_size) / 2) for side in whole.size)
    return whole.crop((left, top, left + image_size, top + image_size))


def to_array(image: PIL.Image.Image) -> np.ndarray:
    """Pixels of an image, uint8 [H, W, 3], or [H, W, 1] of a grey image."""
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)


def from_array(array: np.ndarray) -> PIL.Image.Image:
    """Image of pixels, uint8 [H, W, 3], or [H, W, 1] for a grey image."""
    return PIL.Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])


def _shorten(image: PIL.Image.Image, times: int = _LONGEST) -> PIL.Image.Image:
    """Crops an image to the middle if it is longer than so many times its shorter side."""
    longest = times * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
