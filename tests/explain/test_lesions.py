"""Panels show what pre-training does to an image, and regions where that falls on a lesion."""

import functools
import json

import jax
import numpy as np
import PIL.Image
import pytest
from ml_collections import FrozenConfigDict
from scipy import stats

from egmae_jax.explain import lesions, panels
from egmae_jax.explain.lesions_figure import draw_lesions
from egmae_jax.method import augment, corruption
from egmae_jax.training import pretrain

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


@pytest.mark.parametrize("kind", corruption.kinds())
def test_panels_are_what_corruption_gives(kind):
    pixels = textured(square(0, 0, 40))
    panel = panels_of(pixels, kind)
    entropy = corruption.patch_entropy(pixels[None], PATCH)
    expected = corruption.corrupt(
        KEY, augment.normalize(pixels[None]), entropy, kind=kind, patch_size=PATCH, mask_ratio=0.5
    )
    np.testing.assert_array_equal(panel.entropy, entropy[0])
    np.testing.assert_array_equal(panel.sigma, expected.sigma[0])
    np.testing.assert_array_equal(panel.mask, expected.mask[0])
    np.testing.assert_array_equal(panel.corrupted, expected.image[0])
    assert panel.reconstruction is None
    assert panel.squared_error is None


def test_the_error_is_that_of_the_loss_and_only_on_masked_patches():
    pixels = textured(square(0, 0, 32))

    def reconstruct(batch, key):
        result = pretrain.reconstruct(None, batch, key, model=None, config=config())
        return result._replace(image=result.target + 0.5 * result.corruption.sigma.mean())

    panel = panels.compute_panels(reconstruct, pixels, KEY)
    scored = np.isfinite(panel.squared_error)
    assert scored.mean() == panel.mask.mean() == 0.25
    loss = corruption.masked_mse(
        panel.reconstruction[None], augment.normalize(pixels[None]), panel.mask[None], PATCH
    )
    assert np.nanmean(panel.squared_error) == pytest.approx(float(loss), rel=1e-5)


def test_what_is_displayed_is_the_image_where_nothing_is_clipped():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(panels.to_display(np.array(augment.normalize(pixels))), pixels)
    assert panels.to_display(np.full((1, 1, 3), 99.0)).max() == 255
    assert panels.to_display(np.full((1, 1, 3), -99.0)).max() == 0


@pytest.mark.parametrize(("kind", "noise"), [("entropy_noise", True), ("entropy_topk", False)])
def test_corruptions_with_and_without_noise_are_drawn(kind, noise, tmp_path):
    lesion = square(10, 10, 30)
    panel = panels_of(textured(lesion), kind)
    figure = panels.draw_sheet(
        [panel, panel], ["one.png\ncat", "x" * 99], lesions=[lesion, None], note="a note."
    )
    figure.savefig(tmp_path / "sheet.png")
    assert PIL.Image.open(tmp_path / "sheet.png").size[0] > 1000
    titles = [axis.get_title().split("\n")[0] for axis in figure.axes if axis.get_title()]
    assert titles == [
        *("Image", "Entropy H", "Noise $\\sigma$", "Corrupted input", "Masked patches M")
    ]
    bars = [axis.get_xlabel() for axis in figure.axes if axis.get_xlabel()]
    assert bars == (["nats", "normalised units"] if noise else ["nats"])
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert ("no noise is added" in texts) is not noise
    row = {"label": "cat", "group": 0, **lesions.measure_lesion(panel, lesion)}
    draw_lesions([row], "a title").savefig(tmp_path / "lesions.png")


def test_images_of_a_sheet_share_one_scale():
    drawn = [panels_of(textured(square(0, 0, side), seed=side)) for side in (8, 64)]
    figure = panels.draw_sheet(drawn, ["a", "b"], note="")
    images = [axis.images[0] for axis in figure.axes if axis.images]
    images = [image for image in images if image.get_array().ndim == 2]  # not the colour images
    for name, quantity in (("viridis", "entropy"), ("magma", "sigma")):
        highest = max(getattr(panel, quantity).max() for panel in drawn)
        limits = [image.get_clim() for image in images if image.get_cmap().name == name][:2]
        np.testing.assert_allclose(limits, [(0, highest)] * 2, rtol=1e-6)


def test_regions_divide_the_image_and_the_ring_is_a_patch_wide():
    lesion = square(20, 20, 24)
    regions = lesions.regions(lesion, PATCH)
    counted = sum(regions[name].astype(int) for name in ("inside", "ring", "outside"))
    assert (counted == 1).all()
    assert regions["ring"][20, 4:20].all()
    assert not regions["ring"][20, :4].any()
    assert not regions["core"].any()  # no patch lies wholly in 20 ... 43
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
    row = lesions.measure_lesion(panels_of(textured(square(16, 16, 16))), lesion)
    assert row["entropy"]["inside"] == pytest.approx(row["entropy"]["core"] * 256 / 576)


def test_the_summary_tests_groups_and_averages_images():
    rng = np.random.default_rng(0)
    rows = []
    for group in (0, 1, 2, 3, 4, 5, 5, 5):
        row = lesions.measure_lesion(panels_of(textured(square(0, 0, 40))), square(16, 16, 32))
        inside = float(rng.uniform(1, 2))
        row["entropy"] = {"core": None, "inside": inside, "ring": 1.0, "outside": 2.0}
        rows.append({"group": group, **row})
    summary = lesions.summarize_lesions(rows)
    values = [row["entropy"]["inside"] for row in rows]
    assert summary["images"] == 8
    assert summary["groups"] == 6
    assert summary["images_with_core"] == 0
    assert summary["entropy"]["inside"]["mean"] == pytest.approx(np.mean(values))
    assert summary["entropy"]["inside"]["std"] == pytest.approx(np.std(values, ddof=1))
    by_group = [*values[:5], np.mean(values[5:])]
    expected = stats.wilcoxon(np.array(by_group) - 1.0).pvalue
    assert summary["entropy"]["inside - ring"]["p"] == pytest.approx(expected)
    assert summary["entropy"]["core - ring"] == {"mean": None, "std": None, "p": None}
    json.dumps(summary, allow_nan=False)
