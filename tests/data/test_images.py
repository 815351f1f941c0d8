"""Decoding and the two views of an image; torchvision is the oracle of the evaluation view."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import images
from egmae_jax.data.images import UnreadableImageError
from tests import torch_reference


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(width, height, seed=0):
    """An RGB image without structure: nothing that is off by a pixel goes unseen."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def decoded(encoded):
    image = images.decode(encoded)
    assert image.mode == "RGB"
    array = images.to_array(image)
    assert array.dtype == np.uint8
    assert array.shape == (image.height, image.width, 3)
    return array


def png(width, height, bits, colour_type, rows):
    """A PNG by the specification, for what Pillow cannot write."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


# --- decode ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_rgb_pixels_come_out_as_they_are(file_format):
    image = noise(31, 23)
    np.testing.assert_array_equal(decoded(encode(image, file_format)), np.asarray(image))


def test_grey_becomes_three_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    array = decoded(encode(PIL.Image.fromarray(grey)))
    np.testing.assert_array_equal(array, np.repeat(grey[..., None], 3, axis=2))


def test_black_and_white_becomes_0_and_255():
    bits = np.array([[True, False], [False, True]])
    array = decoded(encode(PIL.Image.fromarray(bits)))
    np.testing.assert_array_equal(array[..., 0], [[255, 0], [0, 255]])


def test_alpha_is_dropped():
    rgba = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    array = decoded(encode(PIL.Image.fromarray(rgba)))
    np.testing.assert_array_equal(array, rgba[..., :3])


def test_grey_with_alpha_is_read():
    grey_alpha = np.random.default_rng(0).integers(0, 256, (9, 7, 2), np.uint8)
    array = decoded(encode(PIL.Image.fromarray(grey_alpha)))
    np.testing.assert_array_equal(array, np.repeat(grey_alpha[..., :1], 3, axis=2))


@pytest.mark.parametrize("transparency", [None, 1])
def test_palette_indices_become_colours(transparency):
    image = PIL.Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    options = {} if transparency is None else {"transparency": transparency}
    array = decoded(encode(image, **options))
    np.testing.assert_array_equal(array[0], [[10, 20, 30], [200, 100, 0], [0, 0, 255]])


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 0), (255,) * 3), ((0, 0, 0, 255), (0,) * 3)],
)
def test_cmyk_jpeg_becomes_rgb(ink, colour):
    array = decoded(encode(PIL.Image.new("CMYK", (16, 16), ink), "JPEG", quality=95))
    assert np.abs(array.astype(int) - colour).max() <= 4


def test_jpeg_is_close_to_what_was_encoded():
    smooth = noise(8, 8).resize((64, 48), PIL.Image.Resampling.BICUBIC)
    array = decoded(encode(smooth, "JPEG", quality=95, subsampling=0))
    assert np.abs(array.astype(int) - np.asarray(smooth)).mean() < 2


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
    array = decoded(encode(image, exif=exif))
    np.testing.assert_array_equal(array, UPRIGHT[orientation](np.asarray(image)))


def test_exif_rotated_jpeg_swaps_its_sides():
    stored = PIL.Image.new("RGB", (40, 24))
    stored.paste((255, 255, 255), (0, 0, 20, 24))  # the left half is white
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # column 0 is the visual top
    array = decoded(encode(stored, "JPEG", exif=exif, quality=95))
    assert array.shape == (40, 24, 3)
    assert array[:18].min() > 240
    assert array[22:].max() < 15


# --- refusals --------------------------------------------------------------------------------


def test_empty_file_is_refused():
    with pytest.raises(UnreadableImageError, match="empty"):
        images.decode(b"")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_file_is_refused(file_format, share):
    whole = encode(noise(80, 60), file_format)
    with pytest.raises(UnreadableImageError, match="truncated"):
        images.decode(whole[: int(share * len(whole))])


def test_no_prefix_of_a_file_brings_another_exception():
    for file_format in ("PNG", "JPEG"):
        whole = encode(noise(24, 20), file_format)
        for length in range(0, len(whole) - 20, 7):
            with pytest.raises(UnreadableImageError):
                images.decode(whole[:length])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_bytes_bring_no_other_exception():
    rng = np.random.default_rng(0)
    for file_format in ("PNG", "JPEG", "BMP"):
        whole = np.frombuffer(encode(noise(24, 20), file_format), np.uint8)
        for _ in range(100):
            damaged = whole.copy()
            damaged[rng.integers(len(whole), size=4)] = rng.integers(0, 256, 4)
            try:
                images.decode(damaged.tobytes())  # what still decodes is an image
            except UnreadableImageError as error:
                assert str(error)  # noqa: PT017 (either outcome is right)


def test_any_error_of_the_parser_is_told_as_damage(monkeypatch):
    def parser(*_, **__):
        raise struct.error("unpack requires a buffer of 8 bytes")

    monkeypatch.setattr(PIL.Image, "open", parser)
    with pytest.raises(images.UnreadableImageError, match=r"damaged.*buffer of 8 bytes"):
        images.decode(b"II*")


@pytest.mark.parametrize(
    "content", [b"File, label\n1.png, benign\n", b"\0" * 100, b"<html></html>"]
)
def test_what_is_no_image_is_refused(content):
    with pytest.raises(UnreadableImageError, match="not an image"):
        images.decode(content)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_of_16_bits_of_grey_the_high_byte_is_kept(file_format):
    grey = np.random.default_rng(0).integers(0, 65536, (20, 20), np.uint16)
    pixels = images.to_array(images.decode(encode(PIL.Image.fromarray(grey), file_format)))
    np.testing.assert_array_equal(pixels, np.repeat((grey >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_of_16_bits_of_colour_the_high_byte_is_kept(colour_type, channels):
    values = np.random.default_rng(0).integers(0, 65536, (4, 4, channels), np.uint16)
    rows = [row.astype(">u2").tobytes() for row in values]
    pixels = images.to_array(images.decode(png(4, 4, 16, colour_type, rows)))
    expected = (values[..., :3] if channels > 2 else values[..., :1]) >> 8
    np.testing.assert_array_equal(pixels, np.broadcast_to(expected, (4, 4, 3)))


def test_16_bit_grey_is_turned_upright():
    grey = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = images.decode(encode(PIL.Image.fromarray(grey), exif=exif))
    np.testing.assert_array_equal(images.to_array(image)[..., 0], np.rot90(grey >> 8, -1))


def test_32_bit_tiff_is_refused():
    for dtype in (np.float32, np.int32):
        image = PIL.Image.fromarray(np.arange(400).reshape(20, 20).astype(dtype))
        with pytest.raises(UnreadableImageError, match="32 bits"):
            images.decode(encode(image, "TIFF"))


def test_grey_mode_makes_one_of_grey_and_coloured_files():
    rng = np.random.default_rng(0)
    colours = PIL.Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    from_colours = images.to_array(images.decode(encode(colours), "grey"))
    from_grey = images.to_array(images.decode(encode(colours.convert("L")), "grey"))
    assert from_colours.shape == (20, 30, 1)
    np.testing.assert_array_equal(from_colours, from_grey)


def test_several_frames_and_formats_that_are_no_pictures_are_refused():
    pages = io.BytesIO()
    noise(20, 20).save(pages, "TIFF", save_all=True, append_images=[noise(20, 20)])
    with pytest.raises(UnreadableImageError, match="2 frames; one image is expected"):
        images.decode(pages.getvalue())
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
    with pytest.raises(UnreadableImageError, match="900000000 pixels"):
        images.decode(png(30_000, 30_000, 8, 2, [b"\0" * 10]))


# --- decoding by OpenCV --------------------------------------------------------------------------


@pytest.mark.parametrize("color", images.COLORS)
@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("RGB", "JPEG", {"quality": 90}),
        ("RGB", "JPEG", {"quality": 75, "subsampling": 2, "progressive": True}),
        ("L", "JPEG", {}),
    ],
)
def test_fast_decoding_gives_the_same_pixels(mode, file_format, options, color):
    encoded = encode(noise(61, 45).convert(mode), file_format, **options)
    assert images.is_fast(encoded, images.decode(encoded))
    np.testing.assert_array_equal(
        images.decode_fast(encoded, color, mode), images.to_array(images.decode(encoded, color))
    )


def test_what_opencv_sees_differently_is_not_fast():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    rotated = encode(noise(61, 45), "JPEG", exif=exif)
    assert not images.is_fast(rotated, images.decode(rotated))
    cmyk = encode(noise(61, 45).convert("CMYK"), "JPEG")
    assert images.is_fast(cmyk, images.decode(cmyk)) == np.array_equal(
        images.decode_fast(cmyk), np.asarray(images.decode(cmyk))
    )


def test_files_that_a_decoder_treats_alike_are_of_one_kind():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    files = [
        encode(noise(61, 45), "JPEG", quality=90),
        encode(noise(61, 45), "JPEG", quality=90, subsampling=0),
        encode(noise(61, 45), "JPEG", quality=90, progressive=True),
        encode(noise(61, 45), "JPEG", quality=90, exif=exif),
        encode(noise(61, 45).convert("L"), "JPEG"),
        encode(noise(61, 45).convert("CMYK"), "JPEG"),
    ]
    kinds = [images.examine(file).kind for file in files]
    assert len(set(kinds)) == len(kinds)
    assert images.examine(encode(noise(20, 70), "JPEG", quality=30)).kind == kinds[0]
    assert [images.examine(file).mode for file in files[4:]] == ["L", "CMYK"]
    for file_format in ("PNG", "TIFF"):
        assert images.examine(encode(noise(61, 45), file_format)).kind == ""


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_packed_pixels_are_unpacked(mode):
    image = noise(61, 45).convert(mode).convert("RGB")
    packed = images.pack(image)
    assert len(packed) == 61 * 45 * len(mode)
    for color, pillow in (("rgb", "RGB"), ("grey", "L")):
        array = images.unpack(packed, 45, 61, color)
        np.testing.assert_array_equal(array, images.to_array(image.convert(pillow)))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP", "JPEG", "WEBP"])
def test_formats_that_lose_nothing_are_packed(file_format):
    lossy = images.examine(encode(noise(61, 45), file_format)).lossy
    assert lossy == (file_format in ("JPEG", "WEBP"))


# --- the evaluation view -----------------------------------------------------------------------

SIZES = [
    (224, 224),
    (256, 256),
    (500, 471),
    (471, 500),
    (301, 225),
    (225, 301),
    (223, 997),
    (997, 223),
    (37, 41),
    (61, 29),
    (225, 224),
    (224, 229),
    (1, 3),
    (640, 640),
]


def torchvision_formula(image, size):
    """Resize(size) and CenterCrop(size) as torchvision's transforms/functional.py computes them."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_short, new_long = size, int(size * long / short)
    new = (new_short, new_long) if width <= height else (new_long, new_short)
    resized = image.resize(new, PIL.Image.Resampling.BILINEAR)
    left = int(round((new[0] - size) / 2.0))  # noqa: RUF046 (as it stands there)
    top = int(round((new[1] - size) / 2.0))  # noqa: RUF046
    return np.asarray(resized)[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [224, 96, 63])
def test_evaluation_view_is_torchvisions_by_its_formula(size):
    for width, height in SIZES:
        image = noise(width, height)
        view = images.to_array(images.evaluation_view(image, "shorter_side", size))
        assert view.shape == (size, size, 3)
        np.testing.assert_array_equal(view, torchvision_formula(image, size))


@pytest.mark.parametrize("size", [224, 96, 63])
def test_evaluation_view_is_torchvisions_pixel_for_pixel(size):
    transforms = torch_reference.torchvision().transforms
    oracle = transforms.Compose(
        [
            transforms.Resize(size, transforms.InterpolationMode.BILINEAR, antialias=True),
            transforms.CenterCrop(size),
        ]
    )
    for width, height in SIZES:
        image = noise(width, height)
        view = images.to_array(images.evaluation_view(image, "shorter_side", size))
        np.testing.assert_array_equal(view, np.asarray(oracle(image)), err_msg=f"{width}x{height}")


def test_the_crops_offset_is_torchvisions_over_all_aspects():
    # A ramp along the longer side shows the offset; offsets of n + .5 are rounded to even.
    for long in range(64, 200, 3):
        ramp = np.repeat(np.arange(long, dtype=np.uint8)[None, :, None], 64, axis=0)
        image = PIL.Image.fromarray(np.repeat(ramp, 3, axis=2))
        view = images.to_array(images.evaluation_view(image, "shorter_side", 64))
        assert view[0, 0, 0] == round((long - 64) / 2)
        turned = images.evaluation_view(
            image.transpose(PIL.Image.Transpose.TRANSPOSE), "shorter_side", 64
        )
        assert images.to_array(turned)[0, 0, 0] == round((long - 64) / 2)


def test_squash_resizes_both_sides():
    image = noise(90, 50)
    expected = np.asarray(image.resize((32, 32), PIL.Image.Resampling.BILINEAR))
    view = images.to_array(images.evaluation_view(image, "squash", 32))
    np.testing.assert_array_equal(view, expected)


def test_pad_adds_equal_black_bars_and_keeps_the_aspect():
    white = PIL.Image.new("RGB", (128, 64), (255, 255, 255))
    view = images.to_array(images.evaluation_view(white, "pad", 64))
    assert view.shape == (64, 64, 3)
    # 64 rows of 128 become 32 of 64: a quarter of black above and below.
    assert (view[:15] == 0).all()
    assert (view[17:47] == 255).all()
    assert (view[49:] == 0).all()
    tall = images.to_array(
        images.evaluation_view(white.transpose(PIL.Image.Transpose.ROTATE_90), "pad", 64)
    )
    np.testing.assert_array_equal(tall, view.transpose(1, 0, 2))


@pytest.mark.parametrize("color", images.COLORS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("mode", "file_format"),
    [*((m, "PNG") for m in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")), ("CMYK", "JPEG")],
)
def test_an_opened_image_is_converted_as_its_file_is_decoded(mode, file_format, orientation, color):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = noise(9, 7).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = PIL.Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    encoded = encode(image, file_format, exif=exif)
    opened = PIL.Image.open(io.BytesIO(encoded))
    found = images.convert(opened, color)
    assert found.tobytes() == images.decode(encoded, color).tobytes()
    assert found.mode == ("RGB" if color == "rgb" else "L")
    assert (opened.mode, opened.size) == (mode, (9, 7))  # as it was
    assert opened.getexif()[0x0112] == orientation


def test_what_cannot_be_decoded_cannot_be_converted():
    whole = encode(noise(40, 40))
    for encoded, message in (
        (encode(PIL.Image.new("F", (3, 3)), "TIFF"), "32 bits"),
        (encode(noise(3, 3), "GIF", save_all=True, append_images=[noise(3, 3, 1)]), "2 frames"),
        (whole[:-300], "damaged"),
    ):
        with pytest.raises(UnreadableImageError, match=message):
            images.convert(PIL.Image.open(io.BytesIO(encoded)))


@pytest.mark.parametrize("mode", images.RESIZE_MODES)
def test_a_square_image_of_the_right_size_is_left_as_it_is(mode):
    image = noise(64, 64)
    np.testing.assert_array_equal(
        images.to_array(images.evaluation_view(image, mode, 64)), np.asarray(image)
    )


@pytest.mark.parametrize("mode", images.RESIZE_MODES)
def test_evaluation_view_has_the_asked_size_whatever_comes_in(mode):
    for width, height in SIZES:
        assert images.evaluation_view(noise(width, height), mode, 96).size == (96, 96)


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


@pytest.mark.parametrize("size", [(4000, 100), (100, 4000), (901, 20), (5000, 1)])
def test_of_a_strip_the_middle_is_taken_and_its_shorter_side_is_kept(size):
    image = noise(*size)
    view = images.training_view(image, "shorter_side", 448)
    short, long = sorted(size)
    assert sorted(view.size) == [short, 4 * short]
    start = (long - 4 * short) // 2
    pixels = np.asarray(image) if size[0] > size[1] else np.asarray(image).transpose(1, 0, 2)
    middle = np.asarray(view) if size[0] > size[1] else np.asarray(view).transpose(1, 0, 2)
    np.testing.assert_array_equal(middle, pixels[:, start : start + 4 * short])


@pytest.mark.parametrize("mode", images.RESIZE_MODES)
def test_the_size_of_the_training_view_is_known_without_the_image(mode):
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = tuple(int(side) for side in rng.integers(1, 900, 2))
        view = images.training_view(PIL.Image.new("RGB", size), mode, 100)
        assert view.size == images.training_size(size, mode, 100)


def test_training_view_keeps_the_aspect_to_the_pixel():
    rng = np.random.default_rng(0)
    for _ in range(50):
        width, height = (int(side) for side in rng.integers(1, 700, 2))
        view = images.training_view(PIL.Image.new("RGB", (width, height)), "shorter_side", 128)
        assert min(view.size) <= 160
        assert max(view.size) <= 320
        assert view.width <= width
        assert view.height <= height
        if max(width, height) <= 4 * min(width, height):
            factor = min(128 / min(width, height), 256 / max(width, height))
            factor = factor if factor < 0.8 else 1
            assert abs(view.width - width * factor) <= 1
            assert abs(view.height - height * factor) <= 1


def test_training_view_squash_makes_the_square_of_the_store_size():
    image = noise(90, 50)
    view = images.training_view(image, "squash", 64)
    expected = image.resize((64, 64), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(view), np.asarray(expected))


def test_training_view_pad_makes_a_square_without_enlarging():
    image = noise(50, 30)
    padded = np.asarray(images.training_view(image, "pad", 64))
    assert padded.shape == (50, 50, 3)
    np.testing.assert_array_equal(padded[10:40], np.asarray(image))
    assert (padded[:10] == 0).all()
    assert (padded[40:] == 0).all()
    assert images.training_view(noise(500, 300), "pad", 64).size == (64, 64)


@pytest.mark.parametrize("resized", [64, 65, 68, 90])
def test_the_centre_is_cropped_from_what_is_resized_as_torchvision_does(resized):
    transforms = torch_reference.torchvision().transforms
    bilinear = transforms.InterpolationMode.BILINEAR
    for width, height in SIZES:
        image = noise(width, height)
        for resize, size in (("shorter_side", resized), ("squash", (resized, resized))):
            scaled = transforms.Resize(size, bilinear, antialias=True)(image)
            view = images.to_array(images.evaluation_view(image, resize, 64, resized))
            expected = np.asarray(transforms.CenterCrop(64)(scaled))
            np.testing.assert_array_equal(view, expected, err_msg=f"{width}x{height} {resize}")


def test_what_is_padded_is_cropped_after_that():
    white = PIL.Image.new("RGB", (128, 64), (255, 255, 255))
    view = images.to_array(images.evaluation_view(white, "pad", 64, 80))
    assert view.shape == (64, 64, 3)
    # 80 pixels of width are 40 of height: of the 20 black rows above, the crop takes 8 off.
    assert (view[:11] == 0).all()
    assert (view[13:51] == 255).all()
    assert (view[53:] == 0).all()
