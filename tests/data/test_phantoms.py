"""The phantoms: files against themselves, classes against a probe."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from egmae_jax.core.errors import UserError
from egmae_jax.data import phantoms
from egmae_jax.data.phantoms import CLASSES, phantom, write

SMALL = {"seed": 0, "height": 32, "width": 40}


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


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


def test_a_mass_lies_where_the_probe_sees_it():
    visible = np.zeros((64, 80), bool)
    visible[30, 50] = True
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tissue = phantoms.add_mass(rng, np.zeros((64, 80)), "benign", visible)
        assert tissue[30, 50] < -10  # dark inside
        view = phantoms.field_of_view(rng, 64, 80)
        assert view[:, 30:50].all()
        assert (np.diff(view.sum(1)) >= 0).all()  # wider at depth
