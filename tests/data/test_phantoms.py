"""The phantoms: speckle against theory, files against themselves, classes against a probe."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from egmae_jax.core.errors import UserError
from egmae_jax.data import phantoms
from egmae_jax.data.phantoms import CLASSES, add_mass, envelope, phantom, write

SMALL = {"seed": 0, "height": 32, "width": 40}


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def speckle():
    return envelope(np.random.default_rng(0), np.ones((512, 512)))


def test_homogeneous_tissue_gives_rayleigh_statistics(speckle):
    assert speckle.mean() / speckle.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.01)
    independent = speckle[::5, ::10].ravel()  # seven standard deviations of the pulse apart
    scale = np.sqrt(np.mean(independent**2) / 2)  # the maximum-likelihood fit
    assert stats.kstest(independent, stats.rayleigh(scale=scale).cdf).pvalue > 0.05
    assert stats.kstest(independent, stats.norm(*stats.norm.fit(independent)).cdf).pvalue < 1e-6


@pytest.mark.parametrize("echogenicity", [1e-3, 1.0, 50.0])
def test_mean_intensity_is_the_echogenicity(echogenicity):
    amplitude = envelope(np.random.default_rng(1), np.full((300, 400), echogenicity))
    assert np.mean(amplitude**2) == pytest.approx(echogenicity, rel=0.03)
    border = np.concatenate([amplitude[[0, -1]].ravel(), amplitude[:, [0, -1]].ravel()])
    assert np.mean(border**2) == pytest.approx(echogenicity, rel=0.2)


def test_resolution_is_finer_along_the_beam_and_is_that_of_the_pulse(speckle):
    intensity = speckle**2 - np.mean(speckle**2)

    def correlation(axis, lag):
        shifted = np.roll(intensity, lag, axis)
        return np.mean(intensity * shifted) / intensity.var()

    # Siegert: intensities correlate as the square of the fields, exp(-lag^2 / (4 sigma^2)).
    for axis, sigma in enumerate(phantoms.PULSE_PX):
        expected = np.exp(-((2 / sigma) ** 2) / 2)
        assert correlation(axis, 2) == pytest.approx(expected, abs=0.02)
    assert correlation(0, 2) < 0.1 < 0.3 < correlation(1, 2)


def mass_with_absorption(monkeypatch, kind, absorption, seed):
    limits = phantoms.MASS_LIMITS | {"absorption_db_per_mm": ((absorption, absorption),) * 3}
    monkeypatch.setattr(phantoms, "MASS_LIMITS", limits)
    return add_mass(np.random.default_rng(seed), np.zeros((128, 192)), kind)


def test_a_mass_brightens_or_shadows_what_lies_below_it(monkeypatch):
    for kind in phantoms.MASS_KINDS:
        neutral, enhanced, shadowed = (
            mass_with_absorption(monkeypatch, kind, absorption, seed=3)
            for absorption in (0.0, -1.0, 1.0)
        )
        assert abs(neutral[-1]).max() < 0.1
        assert enhanced[-1].max() > 1
        np.testing.assert_allclose(enhanced - neutral, neutral - shadowed, atol=1e-9)
        difference = enhanced - neutral
        assert difference[-1].max() == difference.max()  # accumulates with depth


def test_benign_masses_are_wide_and_malignant_ones_tall_with_a_rougher_margin(monkeypatch):
    def shape(kind, seed):
        """Height to width, and perimeter^2 / area, of the largest dark region."""
        dark = mass_with_absorption(monkeypatch, kind, 0.0, seed) < -6
        labels, _ = ndimage.label(dark)
        mask = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
        perimeter = np.sum(mask & ~ndimage.binary_erosion(mask))
        rows, columns = np.nonzero(mask)
        return np.ptp(rows) / np.ptp(columns), perimeter**2 / mask.sum()

    benign = np.array([shape("benign", seed) for seed in range(40)])
    malignant = np.array([shape("malignant", seed) for seed in range(40)])
    assert np.median(benign[:, 0]) < 0.8
    assert np.median(malignant[:, 0]) > 1
    assert np.median(malignant[:, 1]) > 1.2 * np.median(benign[:, 1])
    assert benign[:, 0].max() > malignant[:, 0].min()  # the classes overlap


def around_the_darkest_blob(image):
    """Means and deviations over 8-pixel squares about the darkest blob that is not at an edge."""
    image = (image - image.mean()) / image.std()
    blobs = ndimage.gaussian_filter(image, 6) - ndimage.gaussian_filter(image, 18)
    row, column = np.unravel_index(blobs[16:80, 16:144].argmin(), (64, 128))
    padded = np.pad(image, 40, mode="reflect")
    squares = padded[row + 28 : row + 100, column + 20 : column + 92].reshape(9, 8, 9, 8)
    return np.concatenate([squares.mean((1, 3)).ravel(), squares.std((1, 3)).ravel()])


def cross_validated_accuracy(features, labels):
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=144))
    folds = KFold(5, shuffle=True, random_state=0)
    return cross_val_score(model, features, labels, cv=folds).mean()


@pytest.mark.slow
def test_classes_can_be_told_apart_but_not_by_brightness():
    images = np.stack(
        [
            phantom(np.random.default_rng([5, index, k]), label, 128, 160)
            for index, label in enumerate(CLASSES)
            for k in range(60)
        ]
    ).astype(float)
    labels = np.repeat(np.arange(3), 60)
    features = np.stack([around_the_darkest_blob(image) for image in images])
    shuffled = np.random.default_rng(1).permutation(labels)
    assert 0.58 < cross_validated_accuracy(features, labels) < 0.9
    assert cross_validated_accuracy(features, shuffled) < 0.45
    mean, deviation = images.mean((1, 2)), images.std((1, 2))
    assert cross_validated_accuracy(np.column_stack([mean, mean**2]), labels) < 0.45
    assert cross_validated_accuracy(np.column_stack([mean, deviation]), labels) < 0.5


def test_files_are_named_as_busi_names_them_and_depend_on_seed_and_number_alone(tmp_path):
    write(tmp_path / "few", images_per_class=2, **SMALL)
    few = files(tmp_path / "few")
    names = {f"{label}/{label} ({k}).png" for label in CLASSES for k in (1, 2)}
    assert set(few) == names | {"phantoms.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["few"]
    for index, label in enumerate(CLASSES):
        with Image.open(tmp_path / "few" / label / f"{label} (2).png") as image:
            assert image.mode == "L"
            expected = phantom(np.random.default_rng([0, index, 2]), label, 32, 40)
            np.testing.assert_array_equal(np.asarray(image), expected)
    write(tmp_path / "few", images_per_class=2, **SMALL)  # leaves what is there
    write(tmp_path / "many", images_per_class=3, **SMALL)
    write(tmp_path / "other", images_per_class=2, **SMALL | {"seed": 1})
    assert files(tmp_path / "few") == few
    many = files(tmp_path / "many")
    assert all(many[name] == few[name] for name in names)
    assert not set(files(tmp_path / "other").values()) & set(few.values())


@pytest.mark.parametrize("change", ["images_per_class", "seed", "version", "files"])
def test_a_folder_of_anything_else_is_refused_and_left_as_it_is(tmp_path, monkeypatch, change):
    parameters = {"images_per_class": 1, **SMALL}
    (tmp_path / "demo").mkdir()  # an empty one is filled
    write(tmp_path / "demo", **parameters)
    if change == "files":
        (tmp_path / "demo" / "phantoms.json").unlink()
    elif change == "version":
        monkeypatch.setattr(phantoms, "VERSION", phantoms.VERSION + 1)
    else:
        parameters[change] += 1
    before = files(tmp_path / "demo")
    with pytest.raises(UserError, match=r"demo \(data\.dir\) contains .* were requested: remove"):
        write(tmp_path / "demo", **parameters)
    assert files(tmp_path / "demo") == before


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantoms, "phantom", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "demo", images_per_class=1, **SMALL)
    assert list(tmp_path.iterdir()) == []
