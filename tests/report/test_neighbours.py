"""The map of the test images, and the training images most like wrong ones."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from egmae_jax.core.files import DamagedFileError
from egmae_jax.evaluation.features import Features, load_features, save_features
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.report import figures, mistakes, neighbours
from egmae_jax.report.content import Content
from egmae_jax.run.saved_run import SavedRun


def blobs(count=40, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return 8 * np.eye(3, 16)[labels] + rng.standard_normal((count, 16)), labels


def test_classes_that_are_apart_stay_apart_on_the_map_and_it_is_the_same_each_time():
    features, labels = blobs()
    points = neighbours.project(features)
    assert np.array_equal(points, neighbours.project(features))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert np.mean(labels[distances.argmin(axis=1)] == labels) == 1
    assert neighbours.project(features[:4]) is None
    assert neighbours.project(features[:5]).shape == (5, 2)


def test_the_nearest_are_those_of_the_largest_cosine():
    features, _ = blobs()
    of, _ = blobs(5, seed=1)
    indices, similarities = neighbours.nearest(features, of, 3)
    expected = cosine_similarity(of, features)
    assert np.array_equal(indices, np.argsort(-expected, axis=1)[:, :3])
    np.testing.assert_allclose(similarities, np.take_along_axis(expected, indices, 1), atol=1e-6)
    assert neighbours.nearest(features[:2], of, 3)[0].shape == (5, 2)


def test_the_map_names_classes_and_counts_wrong_images():
    features, labels = blobs()
    points, wrong = features[:, :2], labels == 1
    svg = figures.feature_map(points, labels, wrong, ("a", "<b>", "c"))
    assert "Map of 40 test images by class, 13 of them wrong." in svg
    assert "&lt;b&gt;" in svg
    assert "wrong" in figures.feature_map(points, labels, wrong, ("a", "b", "c"))


def test_features_are_read_as_written_and_damage_is_named(tmp_path):
    features, labels = blobs(6)
    parts = np.array(["train"] * 4 + ["test"] * 2)
    saved = Features(np.array(list("abcdef")), labels, parts, features)
    save_features(tmp_path / "x.npz", saved)
    for array, expected in zip(load_features(tmp_path / "x.npz"), saved, strict=True):
        assert np.array_equal(array, expected)
    assert saved.part("test").ids.tolist() == ["e", "f"]
    save_features(tmp_path / "x.npz", saved._replace(labels=labels[:3]))
    with pytest.raises(DamagedFileError):
        load_features(tmp_path / "x.npz")


def test_the_report_of_a_run_shows_both(html_run):
    workdir, data = html_run
    page = (workdir / "report.html").read_text()
    assert "test images by class" in page
    run = SavedRun(workdir)
    features = neighbours.read(run)
    branch = run.branch()
    test = load_predictions(run.paths.predictions(branch.name, 0, "test"))
    assert sorted(features.part("test").ids) == sorted(test.ids)
    wrong = test.probabilities.argmax(axis=1) != test.labels
    cases = neighbours.wrong_cases(run, features, test, data, most=4, neighbours=2)
    assert len(cases) == min(4, wrong.sum())
    train = {r["file"]: r["label"] for r in run.split(0) if r["split"] == "train"}
    for case in cases:
        assert case.label != case.predicted
        assert [train[near.file] for near in case.neighbours] == [n.label for n in case.neighbours]
        assert case.neighbours[0].similarity >= case.neighbours[1].similarity
        assert case.pixels.shape == (32, 32, 3)


def test_the_worst_mistakes_have_the_highest_losses_of_the_ensemble(html_run):
    workdir, data = html_run
    content = Content(workdir, data)
    test, classes = content.rounds[0], content.classes
    probabilities = test.probabilities[-1]
    wrong = probabilities.argmax(axis=1) != test.labels
    losses = -np.log(probabilities[np.arange(len(wrong)), test.labels])
    found = mistakes.worst(content, 3)
    cases = [case for listed in found.by_class.values() for case in listed]
    assert found.shown == len(cases) == min(3, wrong.sum()) > 0
    assert sum(found.num_wrong.values()) == wrong.sum()
    assert sorted(x.loss for x in cases) == pytest.approx(sorted(losses[wrong])[-3:])
    index = {file: i for i, file in enumerate(test.ids.tolist())}
    for label, listed in found.by_class.items():
        assert [x.loss for x in listed] == sorted((x.loss for x in listed), reverse=True)
        for case in listed:
            assert case.label == label == classes[test.labels[index[case.file]]] != case.predicted
            assert case.pixels.shape == (32, 32, 3)
    page = (workdir / "report.html").read_text()
    assert f"of {wrong.sum()} wrong test images to which ensemble gives the highest loss" in page
    assert page.count(", loss ") == min(48, wrong.sum())
