"""What a set uses of the values that it could hold, and the range that all of a set share."""

import json
import logging

import numpy as np
import PIL.Image
import pytest

from egmae_jax import experiment
from egmae_jax.core.files import DamagedFileError
from egmae_jax.data import audit, images
from egmae_jax.data.datasets import DataError
from egmae_jax.data.masks import MaskError, read_mask
from egmae_jax.data.pixels import PixelStatistics
from egmae_jax.data.prepare import prepare
from egmae_jax.data.samples import IntensityRange
from egmae_jax.deploy import predictor
from egmae_jax.deploy.export import card
from egmae_jax.deploy.export.system import View
from egmae_jax.explain import cam_study
from egmae_jax.run.saved_run import SavedRun
from egmae_jax.run.workdir import Paths, read_intensity_range, record_intensity_range
from tests import tiny


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
    return prepare(
        "image_folder",
        folder,
        folder.parent / "cache",
        on_error="raise",
        near_duplicate_threshold=0.99,
        intensity_range=rule,
    )


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


@pytest.mark.parametrize("largest", [255, 4095, 65535])
def test_the_log_says_that_16_bits_are_hardly_used(tmp_path, caplog, largest):
    arrays = [scene(k, largest) for k in range(4)]
    folder = write(tmp_path / "data", arrays)
    write(folder, [(scene(9, 255)).astype(np.uint8)] * 1)  # replaces cat/0.png: 8 bits
    with caplog.at_level(logging.WARNING):
        data = prepared(folder)
    text = caplog.text
    by_file = dict(zip(data.files, data.pixels.levels.tolist(), strict=True))
    for i, array in enumerate(arrays[1:], 1):
        file = f"{('cat', 'dog')[i % 2]}/{i}.png"
        assert by_file[file] == len(np.unique(array >> 8))
    if largest == 65535:
        assert not text
        return
    assert "3 of 4 images have fewer than 32 grey levels" in text
    top = max(array.max() for array in arrays[1:])
    assert f"3 files of uint16 use {int(top).bit_length()} of 16 bits (values 0 to {top})" in text
    assert "--config.data.intensity_range=dataset" in text


def test_the_audit_tells_bits_levels_and_files(tmp_path, capsys):
    arrays = [scene(k, 4095) for k in range(6)] + [scene(k, 65535) for k in range(6, 8)]
    data = prepared(write(tmp_path / "data", arrays))
    found = audit.save(data, tmp_path / "audit")["pixels"]
    assert found == json.loads((tmp_path / "audit" / "audit.json").read_text())["pixels"]
    assert found["bits"] == {"16": 8}
    assert found["bits_used"] == {"16": {"12": 6, "16": 2}}
    assert found["share_below_32_levels"] == 0.75
    assert found["share_below_a_tenth_of_the_range"] == 0.75  # 15 of 255
    assert sorted(image["file"] for image in found["odd"]) == [
        *(f"cat/{k}.png" for k in (0, 2, 4)),
        *(f"dog/{k}.png" for k in (1, 3, 5)),
    ]
    first = next(image for image in found["odd"] if image["file"] == "cat/0.png")
    assert first["stored"] == [arrays[0].min(), arrays[0].max()]
    assert first["grey_levels"] == len(np.unique(arrays[0] >> 8))
    capsys.readouterr()
    audit.show(audit.save(data, tmp_path / "audit"), tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "16 bits a value (8 images), used 12 (6), 16 (2)" in printed
    assert "75.0% of the images have fewer than 32" in printed
    assert "cat/0.png (values 0 to" in printed
    assert "and 3 more" in printed


@pytest.mark.parametrize("packed", [True, False])
def test_the_range_of_the_set_is_that_of_all_its_files(tmp_path, packed, monkeypatch, caplog):
    if not packed:
        monkeypatch.setattr("egmae_jax.data.records._PACKED_TIMES", 0)
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
        with pytest.raises(MaskError, match="none of them brighter than half"):
            read_mask([path], (6, 8))
    for bright in (inside.astype(np.uint8) * 255, inside.astype(np.uint16) * 65535, 0 * inside):
        PIL.Image.fromarray(bright.astype(bright.dtype if bright.any() else np.uint16)).save(path)
        np.testing.assert_array_equal(read_mask([path], (6, 8)), bright > 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on pictures of 12 bits in 16."""
    root = tmp_path_factory.mktemp("twelve_bits")
    data = tiny.make_data(root / "phantoms")
    for path in data.rglob("*.png"):
        grey = np.asarray(PIL.Image.open(path).convert("L")).astype(np.uint16) * 16
        PIL.Image.fromarray(grey).save(path)
    config = tiny.make_config(
        data,
        root / "cache",
        data__intensity_range="dataset",
        branches=("imagenet",),
        rounds__count=1,
    )
    experiment.run(config, root / "run")
    return config, root / "run", data


@pytest.mark.slow
def test_new_images_are_read_by_the_range_of_the_run(run, tmp_path, caplog):
    _, workdir, data = run
    values = np.stack([np.asarray(PIL.Image.open(p)) for p in sorted(data.rglob("*.png"))])
    recorded = json.loads((workdir / "intensity_range.json").read_text())
    low, high = int(values.min()), int(values.max())
    assert recorded == {"rule": "dataset", "of_dataset": {"uint16": [low, high]}}
    results = json.loads((workdir / "results.json").read_text())
    assert results["dataset"]["intensity_range"] == recorded

    saved = SavedRun(workdir)
    row = saved.split(0)[0]
    file = data / row["file"]
    found = predictor.Predictor(workdir)
    array = np.asarray(PIL.Image.open(file))
    expected = np.round(255 * (array - float(low)) / (high - low)).astype(np.uint8)
    expected = np.repeat(expected[..., None], 3, axis=-1)
    right = found.predict(expected).probabilities["imagenet"]
    loaded = PIL.Image.open(file)
    loaded.load()
    for source in (file, file.read_bytes(), PIL.Image.open(file), loaded):
        np.testing.assert_array_equal(found.predict(source).probabilities["imagenet"], right)
    rows = [{**row, "split": "test"}]
    (explained,) = cam_study.explain_images(saved, saved.branch(), 0, rows, data)
    view = images.evaluation_view(PIL.Image.fromarray(expected), "shorter_side", 32)
    np.testing.assert_array_equal(explained.example.pixels, np.asarray(view))

    assert "become black or white" not in caplog.text
    PIL.Image.fromarray(array + np.uint16(30000)).save(tmp_path / "bright.png")
    found.predict([tmp_path / "bright.png"] * 3)
    said = [record.getMessage() for record in caplog.records]
    (warned,) = [message for message in said if "become black or white" in message]
    assert f"uint16 from {low} to {high}" in warned
    PIL.Image.fromarray(array.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(images.UnreadableImageError, match=r"float32, of which the data set has"):
        found.predict(tmp_path / "float.tif")


@pytest.mark.slow
def test_a_predictor_needs_the_range_of_its_run(run):
    _, workdir, _ = run
    path = workdir / "intensity_range.json"
    content = path.read_text()
    try:
        path.unlink()
        with pytest.raises(DamagedFileError, match="missing"):
            predictor.Predictor(workdir)
    finally:
        path.write_text(content)


def test_a_run_that_has_begun_keeps_its_range(tmp_path):
    paths = Paths(tmp_path, folds=False)
    first = IntensityRange("dataset", {"uint16": (0.0, 4095.0), "float32": (-0.5, 1e-3)})
    record_intensity_range(paths, first, begun=False)
    assert read_intensity_range(paths) == first
    record_intensity_range(paths, first, begun=True)
    other = IntensityRange("dataset", {"uint16": (0.0, 4000.0)})
    with pytest.raises(DataError, match=r"over uint16 from 0 to 4000; the run began with uint16 f"):
        record_intensity_range(paths, other, begun=True)
    for content in ('{"rule": "dataset"}', "{}", "[", '{"rule": "x", "of_dataset": {}}'):
        paths.intensity_range.write_text(content)
        with pytest.raises(DamagedFileError, match=r"intensity_range\.json"):
            read_intensity_range(paths)
    paths.intensity_range.unlink()
    with pytest.raises(DamagedFileError, match="missing"):
        record_intensity_range(paths, first, begun=True)
    record_intensity_range(paths, IntensityRange("type"), begun=False)
    assert not paths.intensity_range.exists()


def test_a_model_card_reads_16_bits_as_the_run_did(tmp_path, monkeypatch):
    intensity = IntensityRange("dataset", {"uint16": (100.0, 4095.0)})
    array = scene(0, 4095)
    PIL.Image.fromarray(array).save(tmp_path / "image.png")
    encoded = (tmp_path / "image.png").read_bytes()
    monkeypatch.chdir(tmp_path)
    for rule in (intensity, IntensityRange()):
        view = View(24, "shorter_side", "rgb", 24, rule)
        names = {"np": np, "PIL": PIL}
        exec("\n".join(card._view_code(view)), names)
        expected = images.evaluation_view(images.decode(encoded, intensity=rule), view.resize, 24)
        np.testing.assert_array_equal(np.asarray(names["image"]), np.asarray(expected))
    assert "uint16 from 100 to 4095" in View(24, "pad", "rgb", 24, intensity).in_words()
