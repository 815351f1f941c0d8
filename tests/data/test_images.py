"""Decoding and the two views of an image; torchvision is the oracle of the evaluation view."""

import contextlib
import io
import struct
import zlib

import imagecodecs
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egmae_jax.data import images, packing
from egmae_jax.data.images import UnreadableImageError
from egmae_jax.data.samples import IntensityRange
from tests import torch_reference
from tests.damage import damaged, little_memory
from tests.data.writers import encode, noise, png, spread, tiff


def decoded(encoded):
    image = images.decode(encoded)
    assert image.mode == "RGB"
    array = images.to_array(image)
    assert array.dtype == np.uint8
    assert array.shape == (image.height, image.width, 3)
    return array


# --- decode ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_pixels_without_loss_come_out_as_they_are(file_format):
    image = noise(31, 23)
    options = {"lossless": True} if file_format == "WEBP" else {}
    encoded = encode(image, file_format, **options)
    np.testing.assert_array_equal(decoded(encoded), image)
    assert images.examine(encoded).lossy == (file_format == "WEBP")  # its files stay as they are


# The transforms that undo each orientation, by the EXIF standard's description of where row 0 and
# column 0 of the stored image belong.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_upright_by_their_exif_orientation(orientation):
    image = noise(9, 5)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    upright = UPRIGHT[orientation](np.asarray(image))
    np.testing.assert_array_equal(decoded(encode(image, exif=exif)), upright)
    wide = PIL.Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
    array = decoded(encode(wide, exif=exif))
    np.testing.assert_array_equal(array[..., 0], upright[..., 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"File, label\n1.png, benign\n", "not an image"),
        (b"\0" * 100, "not an image"),
    ],
)
def test_what_is_no_image_is_refused(content, message):
    with pytest.raises(UnreadableImageError, match=message):
        images.decode(content)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_file_is_refused(file_format, share):
    whole = encode(noise(80, 60), file_format)
    with pytest.raises(UnreadableImageError, match="truncated"):
        images.decode(whole[: int(share * len(whole))])


def test_grey_mode_makes_one_of_grey_and_coloured_files():
    colours = noise(30, 20)
    from_colours = images.to_array(images.decode(encode(colours), "grey"))
    from_grey = images.to_array(images.decode(encode(colours.convert("L")), "grey"))
    assert from_colours.shape == (20, 30, 1)
    np.testing.assert_array_equal(from_colours, from_grey)


def test_several_frames_and_formats_that_are_no_pictures_are_refused():
    pages = encode(noise(20, 20), "TIFF", save_all=True, append_images=[noise(20, 20)])
    with pytest.raises(UnreadableImageError, match="2 frames; one image is expected"):
        images.decode(pages)
    for file_format in ("EPS", "GIF", "ICO"):
        with pytest.raises(UnreadableImageError, match="not an image"):
            images.decode(encode(noise(20, 20), file_format))


def test_memory_that_is_short_is_no_damage(monkeypatch):
    def parser(*_, **__):
        raise MemoryError

    monkeypatch.setattr(PIL.Image, "open", parser)
    with pytest.raises(MemoryError):
        images.decode(b"II*")


def test_an_image_of_absurd_size_is_refused():
    small = png(np.zeros((1, 1, 3), int), 8, 2)
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + small[24:29]
    large = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    with pytest.raises(UnreadableImageError, match="900000000 pixels"):
        images.decode(large)


# --- decoding by OpenCV --------------------------------------------------------------------------


@pytest.mark.parametrize("color", images.COLORS)
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 90}),
        ("RGB", {"quality": 75, "subsampling": 2, "progressive": True}),
        ("L", {}),
    ],
)
def test_fast_decoding_gives_the_same_pixels(mode, options, color):
    encoded = encode(noise(61, 45).convert(mode), "JPEG", **options)
    assert packing.is_fast(encoded, images.decode(encoded))
    assert images.examine(encoded).lossy
    np.testing.assert_array_equal(
        packing.decode_fast(encoded, color), images.to_array(images.decode(encoded, color))
    )


def test_what_opencv_decodes_to_other_pixels_is_not_fast():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    rotated = encode(noise(61, 45), "JPEG", exif=exif)
    assert not packing.is_fast(rotated, images.decode(rotated))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_packed_pixels_are_unpacked(mode):
    image = noise(61, 45).convert(mode).convert("RGB")
    packed = packing.pack(image)
    assert len(packed) == 61 * 45 * len(mode)
    for color, pillow in (("rgb", "RGB"), ("grey", "L")):
        array = packing.unpack(packed, 45, 61, color)
        np.testing.assert_array_equal(array, images.to_array(image.convert(pillow)))


# --- the evaluation view -----------------------------------------------------------------------

SIZES = ((224, 224), (500, 471), (471, 500), (301, 225), (223, 997), (61, 29), (225, 224), (1, 3))


@pytest.mark.parametrize("color", images.COLORS)
@pytest.mark.parametrize(
    ("mode", "file_format"),
    [*((m, "PNG") for m in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")), ("CMYK", "JPEG")],
)
def test_an_opened_image_is_converted_as_its_file_is_decoded(mode, file_format, color):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = noise(9, 7).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = PIL.Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    encoded = encode(image, file_format, exif=exif)
    opened = PIL.Image.open(io.BytesIO(encoded))
    result = images.convert(opened, color)
    assert result.tobytes() == images.decode(encoded, color).tobytes()
    assert result.mode == ("RGB" if color == "rgb" else "L")
    assert (opened.mode, opened.size) == (mode, (9, 7))  # as it was
    assert opened.getexif()[0x0112] == 6


def test_what_cannot_be_decoded_cannot_be_converted():
    loaded = PIL.Image.open(io.BytesIO(encode(noise(40, 40), "TIFF")))
    loaded.load()  # its tags may say more than Pillow's mode
    for image, message in (
        (loaded, "in mode 'RGB' lacks the tags"),
        (PIL.Image.fromarray(np.zeros((3, 3), np.uint16)), "in mode 'I;16' lacks the tags"),
        (PIL.Image.open(io.BytesIO(encode(PIL.Image.new("F", (3, 3)), "TIFF"))), "32 bits"),
        (PIL.Image.open(io.BytesIO(encode(noise(40, 40))[:-300])), "damaged"),
    ):
        with pytest.raises(UnreadableImageError, match=message):
            images.convert(image)


@pytest.mark.parametrize("mode", images.RESIZE_MODES)
def test_a_long_strip_does_not_fill_the_memory(mode):
    strip = np.zeros((2, 100_000, 3), np.uint8)
    strip[:, 49_999:50_001] = 255  # the middle; the whole at 224 pixels would take 7.5 GB
    image = PIL.Image.fromarray(strip)
    view = images.to_array(images.evaluation_view(image, mode, 224))
    assert view.shape == (224, 224, 3)
    if mode == "shorter_side":
        assert view.min() > 100
    assert max(images.training_view(image, mode, 448).size) <= 896


# --- the training view -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1200, 600, (896, 448)),  # shorter side to 448
        (600, 1200, (448, 896)),
        (600, 600, (448, 448)),
        (896, 672, (597, 448)),  # 896 * 448 / 672 = 597.3
        (2000, 500, (896, 224)),  # the longer side is capped at twice 448
    ],
)
def test_large_images_are_reduced(width, height, expected):
    image = noise(width, height)
    view = images.training_view(image, "shorter_side", 448)
    assert view.size == expected
    np.testing.assert_array_equal(
        np.asarray(view), np.asarray(image.resize(expected, PIL.Image.Resampling.BILINEAR))
    )


@pytest.mark.parametrize(
    "size",
    [(448, 448), (448, 896), (896, 448), (300, 200), (50, 200), (1, 1), (600, 450), (560, 560)],
)
def test_images_within_the_bounds_are_neither_enlarged_nor_touched(size):
    image = noise(*size)
    view = images.training_view(image, "shorter_side", 448)
    np.testing.assert_array_equal(np.asarray(view), np.asarray(image))


@pytest.mark.parametrize("long", [4000, 901])
def test_of_a_strip_the_middle_is_taken_and_its_shorter_side_is_kept(long):
    image = noise(long, 20)
    view = images.training_view(image, "shorter_side", 448)
    start = (long - 80) // 2
    np.testing.assert_array_equal(np.asarray(view), np.asarray(image)[:, start : start + 80])
    turned = image.transpose(PIL.Image.Transpose.TRANSPOSE)
    assert images.training_view(turned, "shorter_side", 448).size == (20, 80)


def test_training_views_that_are_squares():
    squashed = images.training_view(noise(90, 50), "squash", 64)
    expected = noise(90, 50).resize((64, 64), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(squashed), np.asarray(expected))
    image = noise(50, 30)  # is not enlarged
    padded = np.asarray(images.training_view(image, "pad", 64))
    assert padded.shape == (50, 50, 3)
    np.testing.assert_array_equal(padded[10:40], np.asarray(image))
    assert (padded[:10] == 0).all()
    assert (padded[40:] == 0).all()
    assert images.training_view(noise(500, 300), "pad", 64).size == (64, 64)


@pytest.mark.parametrize("resized", [None, 65, 68, 90])
def test_the_centre_is_cropped_from_what_is_resized_as_torchvision_does(resized):
    transforms = torch_reference.torchvision().transforms
    bilinear = transforms.InterpolationMode.BILINEAR
    for width, height in SIZES:
        image = noise(width, height)
        whole = resized or 64
        for resize, size in (("shorter_side", whole), ("squash", (whole, whole))):
            scaled = transforms.Resize(size, bilinear, antialias=True)(image)
            view = images.to_array(images.evaluation_view(image, resize, 64, resized))
            expected = np.asarray(transforms.CenterCrop(64)(scaled))
            np.testing.assert_array_equal(view, expected, err_msg=f"{width}x{height} {resize}")


@pytest.mark.parametrize(
    ("resized", "top", "bottom"),
    [
        (None, 16, 48),  # 64 rows of 128 become 32 of 64: a quarter of black above and below
        (80, 12, 52),  # 80 of width are 40 of height: of the 20 black rows the crop takes 8 off
    ],
)
def test_pad_adds_equal_black_bars_before_the_centre_is_cropped(resized, top, bottom):
    white = PIL.Image.new("RGB", (128, 64), (255, 255, 255))
    view = images.to_array(images.evaluation_view(white, "pad", 64, resized))
    assert view.shape == (64, 64, 3)
    assert (view[: top - 1] == 0).all()
    assert (view[top + 1 : bottom - 1] == 255).all()
    assert (view[bottom + 1 :] == 0).all()
    tall = white.transpose(PIL.Image.Transpose.ROTATE_90)
    turned = images.to_array(images.evaluation_view(tall, "pad", 64, resized))
    np.testing.assert_array_equal(turned, view.transpose(1, 0, 2))


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
