"""What a set uses of the values that it could hold, and the range that all of a set share."""

import json
import logging

import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import audit, images
from egmae_jax.data.masks import MaskError, read_mask
from egmae_jax.data.pixels import PixelStatistics
from egmae_jax.data.samples import IntensityRange
from tests.data.writers import prepare_folder


def scene(seed, largest, size=(40, 50)):
    """Smooth shapes of values from 0 to about `largest`: uint16."""
    coarse = np.random.default_rng(seed).uniform(0, largest, (7, 7)).astype(np.float32)
    smooth = PIL.Image.fromarray(coarse).resize(size[::-1], PIL.Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth), 0, largest).round().astype(np.uint16)


def write(folder, arrays, suffix="png"):
    """Two classes of equal size."""
    for i, array in enumerate(arrays):
        path = folder / ("cat", "dog")[i % 2] / f"{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(array).save(path)
    return folder


def prepared(folder, rule="type"):
    return prepare_folder("image_folder", folder, folder.parent / "cache", intensity_range=rule)


@pytest.mark.parametrize(
    ("bits", "low", "high", "used"),
    [
        *((16, 0, 4095, 12), (16, 0, 4096, 13), (16, 0, 65535, 16), (16, 0, 0, 0)),
        *((8, 0, 255, 8), (8, 3, 15, 4), (1, 0, 255, 1), (16, -1000, 3000, 13)),
        *((16, -4096, 0, 13), (16, -4097, 0, 14), (32, 0.0, 0.5, 32)),
    ],
)
def test_bits_used(bits, low, high, used):
    stored = np.array([[low, high]], float)
    statistics = PixelStatistics(
        np.array([""]), np.array([bits]), stored, np.array([9]), np.array([[0, 9]])
    )
    assert statistics.bits_used.tolist() == [used]


def test_the_log_and_the_audit_name_files_that_use_little_of_16_bits(tmp_path, capsys, caplog):
    arrays = [scene(k, 4095) for k in range(6)] + [scene(k, 65535) for k in range(6, 8)]
    folder = write(tmp_path / "data", arrays)
    PIL.Image.fromarray(scene(9, 255).astype(np.uint8)).save(folder / "dog" / "8_bits.png")
    data = prepared(folder)
    first = f"cat/0.png (values {arrays[0].min()} to {arrays[0].max()}, "
    first += f"{len(np.unique(arrays[0] >> 8))} grey levels)"
    result = audit.save(data, tmp_path / "audit")
    audit.show(result, tmp_path)
    for text in (caplog.text, " ".join(capsys.readouterr().out.split())):
        assert "6 of 9 images have fewer than 32 grey levels" in text
        assert first in text
        assert " and 3 more." in text
    assert "8 files of type uint16 use" not in caplog.text  # two of them use all bits
    values = json.loads((tmp_path / "audit" / "audit.json").read_text())["pixels"]
    assert values["bits"] == {"16": 8, "8": 1}
    assert values["bits_used"] == {"16": {"12": 6, "16": 2}, "8": {"8": 1}}
    assert values["share_below_32_levels"] == pytest.approx(6 / 9)
    assert values["share_below_a_tenth_of_the_range"] == pytest.approx(6 / 9)  # 15 of 255
    assert [image["file"] for image in values["odd"]] == [
        *(f"cat/{k}.png" for k in (0, 2, 4)),
        *(f"dog/{k}.png" for k in (1, 3, 5)),
    ]


def test_a_set_of_12_bits_in_16_gets_advice(tmp_path, caplog):
    arrays = [scene(k, 4095) for k in range(2)]
    prepared(write(tmp_path / "data", arrays))
    top = max(array.max() for array in arrays)
    assert f"2 files of type uint16 use 12 of 16 bits (values 0 to {top})" in caplog.text
    assert "--config.data.intensity_range=dataset" in caplog.text


@pytest.mark.parametrize("packed_times", [8, 0])
def test_the_range_of_the_set_is_that_of_all_its_files(tmp_path, packed_times, monkeypatch, caplog):
    monkeypatch.setattr("egmae_jax.data.records._MAX_PACKED_RATIO", packed_times)
    arrays = [scene(k, 4095) for k in range(4)]
    arrays[2][0, 0] = 5000
    folder = write(tmp_path / "data", arrays)
    PIL.Image.fromarray(arrays[3].astype(np.uint8)).save(folder / "cat" / "8.png")  # 8 bits
    PIL.Image.fromarray(arrays[1].astype(np.int32) - 30).save(folder / "dog" / "i.tif")
    with caplog.at_level(logging.WARNING):
        data = prepared(folder, "dataset")
    assert "bits" not in caplog.text
    low = float(arrays[1].min()) - 30
    ranges = {"uint16": (0.0, 5000.0), "int32": (low, float(arrays[1].max()) - 30)}
    assert data.intensity == IntensityRange("dataset", ranges)
    for again in (data, prepared(folder, "dataset")):  # from the cache, too
        assert again.intensity == data.intensity
        index = again.files.index("cat/0.png")
        expected = np.round(arrays[0] / 5000.0 * 255).astype(np.uint8)
        np.testing.assert_array_equal(again.records.pixels(index)[..., 0], expected)
        index = again.files.index("cat/8.png")
        np.testing.assert_array_equal(
            again.records.pixels(index)[..., 0], arrays[3].astype(np.uint8)
        )
    with pytest.raises(images.UnreadableImageError, match="32 bits"):  # by type
        images.decode((folder / "dog" / "i.tif").read_bytes())


def test_a_mask_whose_values_are_all_dark_is_refused(tmp_path):
    inside = np.zeros((6, 8), bool)
    inside[2:4, 2:4] = True
    path = tmp_path / "mask.png"
    for dark in (inside.astype(np.uint8), inside.astype(np.uint16) * 255):
        PIL.Image.fromarray(dark).save(path)
        with pytest.raises(MaskError, match="none of them above half"):
            read_mask([path], (6, 8))
    for bright in (inside.astype(np.uint8) * 255, inside.astype(np.uint16) * 65535, 0 * inside):
        PIL.Image.fromarray(bright.astype(bright.dtype if bright.any() else np.uint16)).save(path)
        np.testing.assert_array_equal(read_mask([path], (6, 8)), bright > 0)
