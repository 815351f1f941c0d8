"""One image from encoded bytes to uint8 pixels: decoding and the two views the project keeps."""

import contextlib
import io
from collections.abc import Iterator
from typing import Literal, NamedTuple

import cv2
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from egmae_jax.core.errors import MissingExtraError, UserError
from egmae_jax.data import dicom, samples
from egmae_jax.data.samples import BY_TYPE, IntensityRange

Resize = Literal["shorter_side", "squash", "pad"]
Color = Literal["rgb", "grey"]
RESIZE_MODES = ("shorter_side", "squash", "pad")
COLORS = ("rgb", "grey")
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")  # others start programs, or hold many images
NOT_AN_IMAGE = "not an image in JPEG, PNG, TIFF, BMP, WebP or DICOM"  # why a file is unreadable
_LOSSY = ("JPEG", "MPO", "WEBP")
_CV2_COLOR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_CV2_GREY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
# Of an image longer than this many times its shorter side only the middle is used: a strip, resized
# or padded as a whole, would fill the memory.
_LONGEST = 16
_LONGEST_CROPPED = 4  # for random crops: reduced further, the shorter side would be enlarged again
# Reducing an image by less takes longer than decoding it, and softens it, to save few pixels.
_WORTH_REDUCING = 0.8


class UnreadableImageError(UserError):
    """The bytes are no image that can be used; the message says why."""


class Decoded(NamedTuple):
    """An image, and what its file is like."""

    image: PIL.Image.Image  # 8-bit RGB
    # How the file stores its pixels: Pillow's mode ('L', 'RGB', 'I;16'), one that names what Pillow
    # has no mode for ('L;16S', 'RGB;16', 'L;12', 'L;32F'), or 'DICOM'.
    mode: str
    # JPEG files of one kind are decoded by the same steps of a decoder: mode, sampling of the
    # channels, orientation, which other fields there are. Empty for other formats.
    kind: str
    lossy: bool  # the format is: the file is much smaller than what `pack` makes of its pixels
    bits: int = 8  # of a value, as the file declares them
    # Type of the values ('uint16'; 'DICOM'; '' for at most 8 bits), the least and the largest that
    # the file stores; None where these are the image's own.
    stored: tuple[str, float, float] | None = None


def decode(
    encoded: bytes, color: Color = "rgb", intensity: IntensityRange = BY_TYPE
) -> PIL.Image.Image:
    """Decodes a whole image to 8-bit RGB or grey, upright by its EXIF orientation.

    Values are what the file's own tags say: bits, sign, which end is white. Of more than 8 bits a
    value `intensity` says what is black and what is white. DICOM: see `dicom.decode`.

    Args:
        encoded: the file's bytes; what it is they say, not its name.
        color: 'rgb', or 'grey' for one channel of luma. Where the sources of a data set stored its
            classes as grey or as colour, 'grey' keeps that from telling the class.
        intensity: by the type of the values, of which the high byte is kept, by what the file
            declares, or by the range of the data set.

    Raises:
        UnreadableImageError: empty, truncated, no image, too large, or of values that cannot be
            read right; its message names these.
    """
    image = examine(encoded, intensity).image
    return image if color == "rgb" else image.convert("L")


def examine(encoded: bytes, intensity: IntensityRange = BY_TYPE) -> Decoded:
    """What `decode` returns, and what the file is like; raises the same.

    Besides, MemoryError, and MissingExtraError where DICOM needs pydicom: no fault of the file's.
    """
    if not encoded:
        raise UnreadableImageError("the file is empty")
    with _damage_told():
        if dicom.is_dicom(encoded):
            found = dicom.decode(encoded)
            stored = ("DICOM", *found.extremes)
            image = found.image.convert("RGB")
            return Decoded(image, "DICOM", "", lossy=False, bits=found.bits, stored=stored)
        if (values := samples.read(encoded)) is not None:
            return _of_samples(values, intensity)
        try:
            image = PIL.Image.open(io.BytesIO(encoded), formats=_FORMATS)
        except PIL.UnidentifiedImageError:
            if not samples.is_tiff(encoded):
                raise
            values = samples.read_tiff(encoded)  # or says what it is that Pillow does not know
            return _of_samples(values, intensity)
        _load(image)
        mode, kind, lossy = image.mode, _kind(image), image.format in _LOSSY
        bits, ends = samples.plain_bits(encoded, image), samples.plain_range(encoded, image)
        image = _upright_rgb(image)
        return Decoded(image, mode, kind, lossy, bits, None if ends is None else ("", *ends))


def _of_samples(values: samples.Samples, intensity: IntensityRange) -> Decoded:
    image = samples.to_image(values, intensity).convert("RGB")
    stored = (values.type if values.bits > 8 else "", *values.extremes)
    return Decoded(image, values.mode, "", values.lossy, values.bits, stored)


def stored_range(encoded: bytes) -> tuple[str, float, float] | None:
    """Type of a file's values, the least and the largest of them, such as ('uint16', 0, 4095).

    Returns:
        None where they are of at most 8 bits, or DICOM's, which tell what is black and white.

    Raises:
        UnreadableImageError: as `examine`, though not for every damage.
    """
    if dicom.is_dicom(encoded):
        return None
    with _damage_told():
        values = samples.read(encoded)
        if values is None or values.bits <= 8:
            return None
        return (values.type, *values.extremes)


def convert(
    image: PIL.Image.Image, color: Color = "rgb", intensity: IntensityRange = BY_TYPE
) -> PIL.Image.Image:
    """What `decode` returns of a file, of an image that Pillow has opened or made; raises the same.

    The image given stays as it is.
    """
    with _damage_told():
        encoded = _unread(image)
        if encoded is not None:
            upright = examine(encoded, intensity).image
        else:
            _load(image)
            values = samples.of_pillow(image)
            if values is not None:
                orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
                values = values._replace(orientation=orientation)
                upright = samples.to_image(values, intensity).convert("RGB")
            else:
                upright = _upright_rgb(image)
    return upright if color == "rgb" else upright.convert("L")


def _unread(image: PIL.Image.Image) -> bytes | None:
    """The file's bytes, of a PNG or TIFF that Pillow has opened and not yet read.

    Pillow keeps the high byte of colours of 16 bits only, and not all tags.
    """
    file = getattr(image, "fp", None)
    if image.format not in ("PNG", "TIFF") or file is None or getattr(image, "n_frames", 1) > 1:
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
    if image.mode in ("La", "RGBa"):  # multiplied by their alpha
        exif = image.getexif()
        image = image.convert(f"{image.mode[:-1]}A")
        image.getexif().update(exif)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # straight to RGB Pillow warns of what is left out
    if image.mode == "LAB":
        raise UnreadableImageError("CIELab colours are not supported; convert it to RGB")
    if image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1:
        image = PIL.ImageOps.exif_transpose(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """Turns what the readers raise into UnreadableImageError."""
    try:
        yield
    except (MemoryError, MissingExtraError):  # no fault of the file's
        raise
    except (UnreadableImageError, dicom.DicomError, samples.SamplesError) as error:
        raise UnreadableImageError(str(error)) from None
    except PIL.UnidentifiedImageError:
        raise UnreadableImageError(NOT_AN_IMAGE) from None
    except PIL.Image.DecompressionBombError as error:
        raise UnreadableImageError(str(error)) from None
    except Exception as error:  # damaged files bring whatever Pillow's parsers stumble upon
        raise UnreadableImageError(
            f"damaged or truncated, or of a kind that is not supported: {error!r}"
        ) from None


def _kind(image: PIL.Image.Image) -> str:
    if image.format != "JPEG":
        return ""
    sampling = [layer[1:3] for layer in getattr(image, "layer", [])]
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    return f"{image.mode} {sampling} {orientation} {sorted(map(str, image.info))}"


def pack(image: PIL.Image.Image) -> bytes:
    """The pixels of an RGB image in a form that records compress well and that is read fast.

    Of grey images one channel is kept. Each pixel but the first of a row is its difference to the
    one before it, which the records' compression makes about as small as PNG.
    """
    array = np.asarray(image)
    if (array == array[..., :1]).all():
        array = array[..., :1]
    return np.diff(array, axis=1, prepend=np.uint8(0)).tobytes()


def unpack(packed: bytes, height: int, width: int, color: Color = "rgb") -> np.ndarray:
    """The inverse of `pack`: uint8 [H, W, 3], for grey [H, W, 1]."""
    differences = np.frombuffer(packed, np.uint8).reshape(height, width, -1)
    array = np.cumsum(differences, axis=1, dtype=np.uint8)
    if color == "rgb" and array.shape[2] == 1:
        return np.asarray(cv2.cvtColor(array, cv2.COLOR_GRAY2RGB))
    if color == "grey" and array.shape[2] == 3:
        return to_array(PIL.Image.fromarray(array).convert("L"))
    return array


def decode_fast(encoded: bytes, color: Color = "rgb", mode: str = "RGB") -> np.ndarray:
    """The pixels of what `decode` returns of a JPEG file, sooner, by OpenCV.

    Only for files whose pixels are known to be the same (`is_fast`): OpenCV passes over damage, and
    knows less of modes and orientation.

    Args:
        encoded: the file's bytes.
        color: as for `decode`.
        mode: of the file (`examine`).

    Returns:
        uint8 [H, W, 3], for grey [H, W, 1].
    """
    grey = color == "grey" and mode == "L"
    flags = _CV2_GREY if grey else _CV2_COLOR
    array = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if array is None:
        raise UnreadableImageError("damaged since it was prepared")
    if color == "grey" and not grey:
        array = np.asarray(PIL.Image.fromarray(array).convert("L"))
    return array.reshape(*array.shape[:2], -1)


def is_fast(encoded: bytes, image: PIL.Image.Image) -> bool:
    """Whether OpenCV decodes a JPEG file to the pixels of `image`, which `decode` has returned."""
    array = cv2.imdecode(np.frombuffer(encoded, np.uint8), _CV2_COLOR)
    return array is not None and np.array_equal(array, np.asarray(image))


def training_view(image: PIL.Image.Image, resize: Resize, store_size: int) -> PIL.Image.Image:
    """What random crops are taken from: the image itself, reduced if it is large.

    Args:
        image: RGB or grey.
        resize: 'shorter_side' keeps the aspect; 'squash' and 'pad' make a square, once, here.
        store_size: what the shorter side of a large image is reduced to, in pixels; the longer may
            be twice that. An image up to a quarter larger stays as it is. Of an image longer than
            four times its shorter side the middle is taken.
    """
    size = training_size(image.size, resize, store_size)
    if resize == "pad":
        return PIL.ImageOps.pad(_shorten(image), size, PIL.Image.Resampling.BILINEAR)
    if resize == "shorter_side":
        image = _shorten(image, _LONGEST_CROPPED)
    return image if image.size == size else image.resize(size, PIL.Image.Resampling.BILINEAR)


def training_size(size: tuple[int, int], resize: Resize, store_size: int) -> tuple[int, int]:
    """Width and height of the training view of an image of that width and height."""
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
    """What is evaluated: torchvision's Resize(resized) and CenterCrop(image_size).

    Args:
        image: RGB or grey.
        resize: 'shorter_side' keeps the aspect; 'squash' resizes both sides, 'pad' pads to a square
            with black first.
        image_size: side of the view in pixels.
        resized: side in pixels before the centre is cropped, the shorter one where the aspect is
            kept, at least image_size (the config's evaluation.resize); None: image_size.
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
    """uint8 [H, W, 3], of a grey image [H, W, 1]."""
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)


def from_array(array: np.ndarray) -> PIL.Image.Image:
    """The inverse of `to_array`."""
    return PIL.Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])


def _shorten(image: PIL.Image.Image, times: int = _LONGEST) -> PIL.Image.Image:
    """The middle of an image that is longer than so many times its shorter side."""
    longest = times * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
