"""The maps show what pre-training does, and the regions what lesion masks say."""

import functools
import json

import jax
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict, FrozenConfigDict
from scipy import stats

from egmae_jax import experiment
from egmae_jax.core.files import DamagedFileError
from egmae_jax.data import datasets, masks
from egmae_jax.data.datasets import DataError
from egmae_jax.explain import entropy_maps, lesions, panels
from egmae_jax.method import augment, corruption
from egmae_jax.run.config import ConfigError
from egmae_jax.run.saved_run import RunError
from egmae_jax.training import pretrain
from tests import forks
from tests.conftest import SHARED_DATA, needs_shared_data
from tests.tiny import make_config, make_data

SIDE, PATCH = 64, 16
KEY = jax.random.key(3)


def config(kind="entropy_noise", **changes):
    return FrozenConfigDict(
        {
            "corruption": {
                "kind": kind,
                "patch_size": PATCH,
                "scale": 1.0,
                "threshold": 0.0,
                "mask_ratio": 0.5,
                **changes,
            },
            "entropy": {"num_bins": 256, "color": "per_channel"},
        }
    )


def panels_of(pixels, kind="entropy_noise", **changes):
    program = functools.partial(
        pretrain.reconstruct, None, model=None, config=config(kind, **changes)
    )
    return panels.compute_panels(program, pixels, KEY)


def textured(where, seed=0):
    """Noise where `where` is, one grey value elsewhere: uint8 [SIDE, SIDE, 1]."""
    noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), np.uint8)
    return np.where(where, noise, 90).astype(np.uint8)[..., None]


def square(top, left, side):
    lesion = np.zeros((SIDE, SIDE), bool)
    lesion[top : top + side, left : left + side] = True
    return lesion


@pytest.mark.parametrize("kind", corruption.KINDS)
def test_panels_are_what_corruption_gives(kind):
    pixels = textured(square(0, 0, 40))
    found = panels_of(pixels, kind)
    entropy = corruption.patch_entropy(pixels[None], PATCH)
    expected = corruption.corrupt(
        KEY, augment.normalize(pixels[None]), entropy, kind=kind, patch_size=PATCH, mask_ratio=0.5
    )
    np.testing.assert_array_equal(found.entropy, entropy[0])
    np.testing.assert_array_equal(found.sigma, expected.sigma[0])
    np.testing.assert_array_equal(found.mask, expected.mask[0])
    np.testing.assert_array_equal(found.corrupted, expected.image[0])
    assert found.reconstruction is None
    assert found.squared_error is None


def test_the_error_is_that_of_the_loss_and_only_on_masked_patches():
    pixels = textured(square(0, 0, 32))

    def reconstruct(batch, key):
        found = pretrain.reconstruct(None, batch, key, model=None, config=config())
        return found._replace(image=found.target + 0.5 * found.corruption.sigma.mean())

    found = panels.compute_panels(reconstruct, pixels, KEY)
    scored = np.isfinite(found.squared_error)
    assert scored.mean() == found.mask.mean() == 0.25
    loss = corruption.masked_mse(
        found.reconstruction[None], augment.normalize(pixels[None]), found.mask[None], PATCH
    )
    assert np.nanmean(found.squared_error) == pytest.approx(float(loss), rel=1e-5)


def test_what_is_displayed_is_the_image_where_nothing_is_clipped():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(panels.to_display(np.array(augment.normalize(pixels))), pixels)
    assert panels.to_display(np.full((1, 1, 3), 99.0)).max() == 255
    assert panels.to_display(np.full((1, 1, 3), -99.0)).max() == 0


@pytest.mark.parametrize("kind", corruption.KINDS)
def test_all_kinds_draw(kind, tmp_path):
    lesion = square(10, 10, 30)
    found = panels_of(textured(lesion), kind)
    figure = panels.draw_sheet(
        [found, found], ["one.png\ncat", "x" * 99], lesions=[lesion, None], note="a note"
    )
    figure.savefig(tmp_path / "sheet.png")
    assert PIL.Image.open(tmp_path / "sheet.png").size[0] > 1000
    titles = [axis.get_title().split("\n")[0] for axis in figure.axes if axis.get_title()]
    assert titles == [
        *("Image", "Entropy H", "Noise $\\sigma$", "Corrupted input", "Masked patches M")
    ]
    bars = [axis.get_xlabel() for axis in figure.axes if axis.get_xlabel()]
    noise = kind in ("entropy_noise", "uniform_noise")
    assert bars == (["nats", "normalised units"] if noise else ["nats"])
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert ("no noise is added" in texts) is not noise
    row = {"label": "cat", "group": 0, **lesions.measure_lesion(found, lesion)}
    lesions.draw_lesions([row], "a title").savefig(tmp_path / "lesions.png")


def test_images_of_a_sheet_share_one_scale():
    found = [panels_of(textured(square(0, 0, side), seed=side)) for side in (8, 64)]
    scales = panels.common_scales(found)
    assert scales.entropy == max(x.entropy.max() for x in found)
    figure = panels.draw_sheet(found, ["a", "b"])
    shown = [axis.images[0] for axis in figure.axes if axis.images]
    shown = [image for image in shown if image.get_array().ndim == 2]  # not the colour images
    for name, highest in (("viridis", scales.entropy), ("magma", scales.sigma)):
        limits = [image.get_clim() for image in shown if image.get_cmap().name == name][:2]
        np.testing.assert_allclose(limits, [(0, highest)] * 2, rtol=1e-6)
    flat = panels_of(textured(square(0, 0, 0)))
    assert panels.common_scales([flat]) == (1.0, 1.0, 1.0)


def test_regions_split_the_image_and_the_ring_is_a_patch_wide():
    lesion = square(20, 20, 24)
    found = lesions.regions(lesion, PATCH)
    counted = sum(found[name].astype(int) for name in ("inside", "ring", "outside"))
    assert (counted == 1).all()
    assert found["ring"][20, 4:20].all()
    assert not found["ring"][20, :4].any()
    assert not found["core"].any()  # no patch lies wholly in 20 ... 43
    assert lesions.regions(square(16, 16, 20), PATCH)["core"].sum() == PATCH**2


def test_enrichment_of_textured_and_of_flat_lesions():
    lesion = square(16, 16, 32)  # whole patches
    rows = [
        lesions.measure_lesion(panels_of(textured(where)), lesion) for where in (lesion, ~lesion)
    ]
    assert rows[0]["area_share"] == 0.25
    assert rows[0]["noise_share"] == pytest.approx(1)
    assert rows[0]["noise_enrichment"] == pytest.approx(4)
    assert rows[0]["mask_enrichment"] == pytest.approx(4)
    assert rows[0]["entropy"]["core"] > 4
    assert rows[0]["entropy"]["outside"] == 0
    assert rows[1]["noise_enrichment"] == 0
    assert rows[1]["masked_share"] == {"core": 0, "inside": 0, "ring": 1, "outside": 1}
    assert rows[0]["contrast"]["core"] > 50
    assert rows[1]["contrast"]["inside"] == 0

    unguided = lesions.measure_lesion(panels_of(textured(lesion), "uniform_noise"), lesion)
    assert unguided["noise_enrichment"] == pytest.approx(1)
    no_noise = lesions.measure_lesion(panels_of(textured(lesion), "entropy_topk"), lesion)
    assert no_noise["noise_enrichment"] is None
    assert no_noise["mask_enrichment"] == pytest.approx(2)  # 4 of 8 masked patches, 4 of 16


def test_a_patch_on_the_border_counts_by_its_share():
    lesion = square(16, 16, 24)  # a whole patch, halves and a quarter of others
    found = lesions.measure_lesion(panels_of(textured(square(16, 16, 16))), lesion)
    assert found["entropy"]["inside"] == pytest.approx(found["entropy"]["core"] * 256 / 576)


def test_the_summary_tests_groups_and_averages_images():
    rng = np.random.default_rng(0)
    rows = []
    for group in (0, 1, 2, 3, 4, 5, 5, 5):
        found = lesions.measure_lesion(panels_of(textured(square(0, 0, 40))), square(16, 16, 32))
        inside = float(rng.uniform(1, 2))
        found["entropy"] = {"core": None, "inside": inside, "ring": 1.0, "outside": 2.0}
        rows.append({"group": group, **found})
    summary = lesions.summarize_lesions(rows)
    values = [row["entropy"]["inside"] for row in rows]
    assert summary["images"] == 8
    assert summary["groups"] == 6
    assert summary["images_with_core"] == 0
    assert summary["entropy"]["inside"]["mean"] == pytest.approx(np.mean(values))
    assert summary["entropy"]["inside"]["sd"] == pytest.approx(np.std(values, ddof=1))
    by_group = [*values[:5], np.mean(values[5:])]
    expected = stats.wilcoxon(np.array(by_group) - 1.0).pvalue
    assert summary["entropy"]["inside - ring"]["p"] == pytest.approx(expected)
    assert summary["entropy"]["core - ring"] == {"mean": None, "sd": None, "p": None}
    json.dumps(summary, allow_nan=False)


# --- Masks ---------------------------------------------------------------------------------------


def write(folder, file, array):
    path = folder / "Dataset_BUSI_with_GT" / "benign" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array).save(path)
    return f"Dataset_BUSI_with_GT/benign/{file}"


VIEW = {"resize": "shorter_side", "image_size": 32}


def test_masks_of_another_size_or_damaged_end_in_a_sentence(tmp_path):
    file = write(tmp_path, "a.png", np.zeros((40, 50), np.uint8))
    write(tmp_path, "a_mask.png", np.zeros((40, 60), np.uint8))
    lesion = functools.partial(masks.lesion_mask, tmp_path, file, datasets.get("busi"))
    with pytest.raises(DataError, match=r"a_mask\.png has 60x40 pixels, its image 50x40"):
        lesion(image_shape=(40, 50), **VIEW)
    (tmp_path / file).with_name("a_mask.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a_mask\.png cannot be read: not an image"):
        lesion(image_shape=(40, 50), **VIEW)


def test_data_sets_without_masks_have_none(tmp_path):
    dataset = datasets.get("phantoms")
    assert masks.lesion_mask(tmp_path, "a.png", dataset, image_shape=(4, 4), **VIEW) is None


# --- Command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished pre-training on tiny phantoms: config, workdir."""
    folder = tmp_path_factory.mktemp("run")
    config = make_config(make_data(folder / "data"), folder / "cache")
    experiment.run(config, folder / "work", stage="pretrain")
    return config, folder / "work"


def test_a_workdir_gives_the_reconstruction_of_validation_images(run, tmp_path):
    _, workdir = run
    saved = ConfigDict(json.loads((workdir / "config.json").read_text()))
    source = entropy_maps.Source(saved, workdir)
    among = np.flatnonzero([source.part_of.get(f) == "validation" for f in source.prepared.files])
    indices = entropy_maps.choose(source.prepared, 3, among)
    assert {source.prepared.labels[i] for i in indices} == {0, 1, 2}
    files = entropy_maps.draw(source, indices, tmp_path)
    assert files[0].name == "sheet.png"
    assert all(file.stat().st_size > 10_000 for file in files)
    found = source.panels(indices[0])
    assert found.reconstruction.shape == (32, 32, 3)
    again = source.panels(indices[0], reconstruct=False)  # the same noise
    np.testing.assert_array_equal(found.mask, again.mask)
    np.testing.assert_allclose(found.corrupted, again.corrupted, atol=1e-5)
    assert source.caption(indices[0]).endswith("validation")


def test_without_training_there_is_no_reconstruction(run):
    source = entropy_maps.Source(run[0], None)
    assert source.panels(0).reconstruction is None
    found, rows = entropy_maps.measure(source)
    assert rows == []
    assert found["images"]["all"]["images"] == 36
    assert "lesions" not in found
    entropy_maps.show(found)


def test_files_are_found_by_their_end_and_others_by_a_sentence(run):
    prepared = entropy_maps.Source(run[0], None).prepared
    file = prepared.files[5]
    assert entropy_maps.find(prepared, [file]) == [5]
    with pytest.raises(DataError, match=r"has no such image\. Did you mean"):
        entropy_maps.find(prepared, [file + "x"])


def test_a_workdir_that_is_not_pretrained_ends_in_a_sentence(run, tmp_path):
    with pytest.raises(RunError, match="no finished pre-training"):
        entropy_maps.Source(run[0], tmp_path)
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "autoencoder.safetensors").touch()
    with pytest.raises(DamagedFileError, match="damaged"):
        entropy_maps.Source(run[0], tmp_path)


def test_a_workdir_without_the_branch_mae_ends_in_a_sentence(run, tmp_path):
    config = run[0].copy_and_resolve_references()
    config.branches = ("resnet18", "imagenet")
    message = r"without the branch 'mae' \(its branches: 'resnet18', 'imagenet'\)"
    with pytest.raises(ConfigError, match=message):
        entropy_maps.Source(config, tmp_path)


def command(*arguments):
    return forks.run("-m", "egmae_jax.explain.entropy_maps", *arguments)


@needs_shared_data
@pytest.mark.slow
def test_the_command_on_busi_with_masks(tmp_path):
    out = tmp_path / "out"
    done = command(
        "--config=configs/busi.py:cpu",
        f"--config.data.dir={SHARED_DATA / 'busi_with_masks_sample'}",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--file=benign (9).png",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "noise.json").read_text())["lesions"]
    assert found["all"]["images"] == 19
    assert found["images_without_lesion"] == 10
    assert ["benign (4)_mask_1" in text for text in found["images_left_out"]] == [True]
    assert sorted(path.name for path in out.iterdir()) == [
        "Dataset_BUSI_with_GT_benign_benign (9).png",
        "lesions.png",
        "noise.json",
        "sheet.png",
    ]


def test_mistakes_on_the_command_line_end_in_sentences(run, tmp_path):
    done = command(f"--out={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: Give --workdir=W of a run, or --config=configs/busi.py."
    with pytest.raises(RunError, match=r"holds no run: there is no config\.json"):
        entropy_maps.config_of(tmp_path, None)
    assert entropy_maps.config_of(run[1], run[0]) is run[0]
    other = run[0].copy_and_resolve_references()
    other.corruption.scale = 0.18
    with pytest.raises(ConfigError, match=r"corruption\.scale: 1\.0 in the workdir, 0\.18 now"):
        entropy_maps.config_of(run[1], other)
