"""Metrics against scikit-learn and against loops over classes; intervals against coverage."""

import io
import itertools
import json
import zipfile

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sk

from egmae_jax.core.files import DamagedFileError
from egmae_jax.data.pipeline import Images
from egmae_jax.evaluation import ensemble
from egmae_jax.evaluation.metrics import (
    METRICS,
    WEIGHTED_METRICS,
    compute_metrics,
    confusion_matrix,
    cross_entropy,
    weighted_metrics,
)
from egmae_jax.evaluation.predictions import (
    NoGroupsError,
    Predictions,
    load_predictions,
    save_predictions,
)
from egmae_jax.evaluation.scores import (
    bootstrap_intervals,
    score_branches,
    summarize,
    summarize_classes,
)
from egmae_jax.run.prediction import predict


def random_predictions(seed, num_classes, count=120, *, coarse=False):
    """Labels of all classes and probabilities that say something of them; coarse ones have ties."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % num_classes)
    logits = rng.normal(size=(count, num_classes)) + 1.2 * np.eye(num_classes)[labels]
    if coarse:
        logits = np.round(logits)
    return labels, special.softmax(logits, axis=1)


def pairs_in_order(scores, positive):
    """AUC by definition: the share of (positive, negative) pairs in order, ties a half."""
    p, n = scores[positive][:, None], scores[~positive][None, :]
    return ((p > n) + 0.5 * (p == n)).mean()


def average_precision(scores, positive):
    """Sum of precision times the gain of recall over falling thresholds."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        said = scores >= threshold
        new_recall = (said & positive).sum() / positive.sum()
        total += (new_recall - recall) * (said & positive).sum() / said.sum()
        recall = new_recall
    return total


def metrics_by_loops(labels, probabilities):
    num_classes = probabilities.shape[1]
    predicted = np.array([row.tolist().index(max(row)) for row in probabilities])
    rows = []
    for c in range(num_classes):
        tp = np.sum((predicted == c) & (labels == c))
        fp = np.sum((predicted == c) & (labels != c))
        fn = np.sum((predicted != c) & (labels == c))
        tn = np.sum((predicted != c) & (labels != c))
        positive, scores = labels == c, probabilities[:, c]
        rows.append(
            {
                "precision": tp / (tp + fp) if tp + fp else 0.0,
                "recall": tp / (tp + fn),
                "f1": 2 * tp / (2 * tp + fp + fn),
                "specificity": tn / (tn + fp),
                "auc": pairs_in_order(scores, positive),
                "pr_auc": average_precision(scores, positive),
            }
        )
    result = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    result["accuracy"] = np.mean(predicted == labels)
    result["ece"] = 0.0
    for k in range(15):
        inside = [i for i, p in enumerate(probabilities) if k / 15 < max(p) <= (k + 1) / 15]
        if inside:
            confidence = np.mean([max(probabilities[i]) for i in inside])
            accuracy = np.mean([predicted[i] == labels[i] for i in inside])
            result["ece"] += len(inside) / len(labels) * abs(accuracy - confidence)
    return result


# Metrics


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_metrics_are_those_of_loops_over_classes(num_classes, coarse):
    labels, probabilities = random_predictions(num_classes, num_classes, coarse=coarse)
    ours = compute_metrics(labels, probabilities)
    assert tuple(ours) == METRICS
    assert ours == pytest.approx(metrics_by_loops(labels, probabilities), abs=1e-12)
    assert all(type(value) is float for value in ours.values())
    json.dumps(ours)


def test_auc_of_two_classes_is_the_plain_one():
    labels, probabilities = random_predictions(0, 2)
    expected = sk.roc_auc_score(labels, probabilities[:, 1])
    assert compute_metrics(labels, probabilities)["auc"] == pytest.approx(expected, abs=1e-12)


def test_auc_of_three_classes_is_one_versus_rest_macro():
    labels, probabilities = random_predictions(1, 3)
    expected = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert compute_metrics(labels, probabilities)["auc"] == pytest.approx(expected, abs=1e-12)


def test_specificity_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    said = np.array([0, 1, 2, 1, 0, 2])
    # Class 0: of 3 others one is called 0. Class 1: of 4 one. Class 2: of 5 one.
    expected = (2 / 3 + 3 / 4 + 4 / 5) / 3
    metrics = compute_metrics(labels, np.eye(3)[said])
    assert metrics["specificity"] == pytest.approx(expected)
    # And of two classes it is the recall of the other one, so both macro averages agree.
    labels, probabilities = random_predictions(2, 2)
    metrics = compute_metrics(labels, probabilities)
    assert metrics["specificity"] == pytest.approx(metrics["recall"])


def test_a_class_that_is_never_predicted_has_precision_zero_without_a_warning(recwarn):
    labels = np.array([0, 0, 1, 2])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1]])
    metrics = compute_metrics(labels, probabilities)
    assert metrics["precision"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert not recwarn


def test_perfect_and_certain_predictions_have_the_best_of_every_metric():
    labels = np.array([0, 1, 2, 2, 1])
    metrics = compute_metrics(labels, np.eye(3)[labels])
    assert metrics.pop("ece") == 0
    assert set(metrics.values()) == {1.0}


def test_calibration_error_of_one_confidence_is_its_distance_from_the_accuracy():
    labels = np.array([0] * 6 + [1] * 4)
    probabilities = np.tile([0.9, 0.1], (10, 1))
    assert compute_metrics(labels, probabilities)["ece"] == pytest.approx(0.3)


def test_the_bins_of_the_calibration_error_are_open_below_and_closed_above():
    labels = np.array([0, 0, 1])
    probabilities = np.array([[0.6, 0.4], [0.42, 0.58], [0.0, 1.0]])  # right, wrong, right
    # 0.6 is 9/15, so the first two lie in (8/15, 9/15], where their gaps of .4 and -.58 cancel.
    assert compute_metrics(labels, probabilities)["ece"] == pytest.approx(0.18 / 3)


def test_cross_entropy_is_the_mean_negative_log_of_the_true_class():
    labels, probabilities = random_predictions(3, 4)
    expected = -np.mean([np.log(p[y]) for p, y in zip(probabilities, labels, strict=True)])
    assert cross_entropy(labels, probabilities) == pytest.approx(expected)


def test_confusion_matrix_has_true_classes_in_rows_and_classes_that_never_occur():
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([0, 2, 2]), 4)
    assert matrix.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_float32_probabilities_as_the_model_gives_them_are_taken():
    labels, probabilities = random_predictions(4, 3)
    single = compute_metrics(labels, probabilities.astype(np.float32))
    assert single == pytest.approx(compute_metrics(labels, probabilities), abs=1e-5)


# Weighted metrics and intervals


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_weighted_metrics_are_scikit_learns_with_sample_weight(num_classes, coarse):
    labels, probabilities = random_predictions(5, num_classes, coarse=coarse)
    rng = np.random.default_rng(6)
    weights = np.concatenate(
        [
            rng.uniform(0, 2, (4, len(labels))),
            rng.integers(0, 3, (4, len(labels))),  # many zeros, as in a bootstrap
            np.ones((1, len(labels))),
        ]
    )
    ours = weighted_metrics(labels, probabilities, weights)
    predicted = probabilities.argmax(axis=1)
    for r, w in enumerate(weights):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            labels, predicted, average="macro", sample_weight=w, zero_division=0
        )
        expected = {
            "accuracy": sk.accuracy_score(labels, predicted, sample_weight=w),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "auc": np.mean(
                [
                    sk.roc_auc_score(labels == c, probabilities[:, c], sample_weight=w)
                    for c in range(num_classes)
                ]
            ),
        }
        assert {name: values[r] for name, values in ours.items()} == pytest.approx(
            expected, abs=1e-12
        )


def test_integer_weights_are_repetitions():
    labels, probabilities = random_predictions(7, 3, coarse=True)
    times = np.random.default_rng(8).integers(0, 4, len(labels))
    repeated = compute_metrics(np.repeat(labels, times), np.repeat(probabilities, times, axis=0))
    weighted = weighted_metrics(labels, probabilities, times[None])
    for name, values in weighted.items():
        assert values.shape == (1,)
        assert values[0] == pytest.approx(repeated[name], abs=1e-12), name


def test_weighted_metrics_of_a_class_that_is_never_predicted_are_finite():
    labels = np.array([0, 0, 1, 2])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1]])
    weighted = weighted_metrics(labels, probabilities, np.ones((1, 4)))
    expected = compute_metrics(labels, probabilities)
    for name, values in weighted.items():
        assert values[0] == pytest.approx(expected[name]), name


def test_intervals_contain_the_point_estimates_and_follow_the_seed():
    labels, probabilities = random_predictions(9, 3)
    point = compute_metrics(labels, probabilities)
    options = {"groups": np.arange(len(labels)), "resamples": 500}
    intervals = bootstrap_intervals(labels, probabilities, seed=0, **options)
    assert tuple(intervals) == WEIGHTED_METRICS
    for name, (low, high) in intervals.items():
        assert low < point[name] < high, name
    json.dumps(intervals)
    assert bootstrap_intervals(labels, probabilities, seed=0, **options) == intervals
    assert bootstrap_intervals(labels, probabilities, seed=1, **options) != intervals


def test_the_interval_of_the_accuracy_of_single_images_is_wilsons():
    """The same share of every class is right, so that strata change nothing."""
    labels = np.repeat([0, 1], 50)
    said = np.where(np.arange(100) % 5 == 0, 1 - labels, labels)
    found = bootstrap_intervals(
        labels, np.eye(2)[said], groups=np.arange(100), seed=0, resamples=40_000
    )
    # Of n - 1 groups a class, as its variance is estimated, and with Student's t of 98.
    size, t = 98, stats.t.ppf(0.975, 98)
    center = (0.8 + t**2 / (2 * size)) / (1 + t**2 / size)
    spread = t / (1 + t**2 / size) * np.sqrt(0.16 / size + t**2 / (4 * size**2))
    np.testing.assert_allclose(found["accuracy"], [center - spread, center + spread], atol=1e-3)


def test_copies_of_images_are_no_evidence():
    """Each image three times over as a group: the intervals of the images alone."""
    labels, probabilities = random_predictions(10, 3)
    alone = bootstrap_intervals(
        labels, probabilities, groups=np.arange(len(labels)), seed=0, resamples=300
    )
    thrice = bootstrap_intervals(
        *(np.repeat(labels, 3), np.repeat(probabilities, 3, axis=0)),
        groups=np.repeat(np.arange(len(labels)), 3),
        seed=0,
        resamples=300,
    )
    for name, limits in alone.items():
        np.testing.assert_allclose(thrice[name], limits, atol=1e-12, err_msg=name)


def test_a_class_of_one_image_is_in_every_resample():
    labels = np.array([0] * 10 + [1] * 10 + [2])
    probabilities = special.softmax(np.random.default_rng(13).normal(size=(21, 3)), axis=1)
    intervals = bootstrap_intervals(
        labels, probabilities, groups=np.arange(21), seed=0, resamples=100
    )
    assert np.isfinite(list(intervals.values())).all()


def test_of_two_groups_nothing_is_known():
    labels, probabilities = random_predictions(14, 2)
    found = bootstrap_intervals(
        labels, probabilities, groups=np.arange(len(labels)) % 2, seed=0, resamples=100
    )
    assert all(limits == [0, 1] for limits in found.values())


@pytest.mark.parametrize("name", ["accuracy", "f1", "auc"])
def test_perfect_figures_have_an_interval(name):
    """Wilson's of n right of n: n / (n + t²); of macro averages n is that of the classes' mean."""
    labels = np.array([0] * 40 + [1] * 10)
    found = bootstrap_intervals(
        labels, np.eye(2)[labels], groups=np.arange(50), seed=0, resamples=50
    )
    if name == "accuracy":
        size, freedom = 50, 49
    else:
        size, freedom = 4 / (1 / 40 + 1 / 10), 0.125**2 / (1 / 40**2 / 39 + 1 / 10**2 / 9)
    low = size / (size + stats.t.ppf(0.975, freedom) ** 2)
    assert found[name] == pytest.approx([low, 1])


# Batches, prediction, ensemble


@pytest.mark.parametrize("batch_size", [1, 3, 5, 8])
def test_predictions_come_in_order_and_without_padding(batch_size):
    images = Images(
        np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1), np.ones((5, 2), np.int32), np.arange(5)
    )

    def program(images, indices, first):
        value = 0.1 * images.pixels[indices, 0, 0, 0].astype(np.float32)
        return np.stack([value, 1 - value], axis=1)

    class Split:
        """Stands for `pipeline.Evaluation`, whose own tests show that it gives each image once."""

        def __len__(self):
            return 5

        def batches(self, size):
            for start in range(0, 5, size):
                wanted = np.arange(start, start + size)
                yield images, np.where(wanted < 5, wanted, 0), wanted < 5

    result = predict(program, Split(), batch_size)
    assert (result.shape, result.dtype) == ((5, 2), np.float32)
    np.testing.assert_allclose(result[:, 0], 0.1 * np.arange(5), rtol=1e-6)


def test_the_ensemble_is_the_mean_of_the_branches_in_double_precision():
    branches = [random_predictions(s, 4)[1].astype(np.float32) for s in range(3)]
    result = ensemble.fit("mean", np.zeros(120, int), branches).apply(branches)
    assert result.dtype == np.float64
    for i, c in itertools.product(range(0, 120, 17), range(4)):
        expected = sum(float(b[i, c]) for b in branches) / 3
        assert result[i, c] == pytest.approx(expected, abs=1e-15)
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-6)


# Results


def branch(seed, labels):
    logits = np.random.default_rng(seed).normal(size=(len(labels), 3)) + np.eye(3)[labels]
    probabilities = special.softmax(logits, axis=1).astype(np.float32)
    ids = np.array([f"{i}.png" for i in range(len(labels))])
    return Predictions(ids, labels, probabilities, np.arange(len(labels)) // 2)


def test_the_score_holds_every_branch_and_the_ensemble():
    labels = np.arange(60) % 3
    branches = {"imagenet": branch(0, labels), "mae": branch(1, labels)}
    result = score_branches(branches, branches, classes=("a", "b", "c"), resamples=50)
    assert set(result) == {
        *("test", "by_class", "intervals", "confusion", "calibration", "fusion"),
        *("groups", "groups_by_class"),
    }
    assert result["groups"] == 30
    assert result["groups_by_class"] == {"a": 20, "b": 20, "c": 20}  # 0 and 1, 2 and 0, 1 and 2
    assert result["fusion"] == {"kind": "mean", "branches": ["imagenet", "mae"]}
    mean = (branches["imagenet"].probabilities.astype(float) + branches["mae"].probabilities) / 2
    for name, p in {
        "imagenet": branches["imagenet"].probabilities,
        "mae": branches["mae"].probabilities,
        "ensemble": mean,
    }.items():
        assert result["test"][name] == pytest.approx(metrics_by_loops(labels, p), abs=1e-6)
        for key in ("precision", "recall", "specificity", "f1", "auc", "pr_auc"):
            mean = np.mean([row[key] for row in result["by_class"][name].values()])
            assert mean == pytest.approx(result["test"][name][key])
        counts = np.zeros((3, 3), int)
        np.add.at(counts, (labels, p.argmax(axis=1)), 1)
        assert result["confusion"][name] == counts.tolist()
        low, high = result["intervals"][name]["accuracy"]
        assert low <= result["test"][name]["accuracy"] <= high
    json.dumps(result)


def rounds_of(*accuracies):
    others = dict.fromkeys(METRICS, 0.5)
    return [{"test": {"mae": {**others, "accuracy": a}}} for a in accuracies]


def test_the_summary_has_mean_and_sample_deviation():
    summary = summarize(rounds_of(0.7, 0.8, 0.84))
    assert summary["mae"]["accuracy"]["mean"] == pytest.approx(0.78)
    variance = ((0.7 - 0.78) ** 2 + (0.8 - 0.78) ** 2 + (0.84 - 0.78) ** 2) / 2
    assert summary["mae"]["accuracy"]["std"] == pytest.approx(variance**0.5)
    assert summary["mae"]["ece"] == {"mean": 0.5, "std": 0.0}
    assert set(summary["mae"]) == set(METRICS)


def test_the_summary_of_the_classes_is_over_rounds():
    labels = np.arange(60) % 3
    rounds = [
        score_branches(one, one, classes=("a", "b", "c"), resamples=2)
        for one in ({"mae": branch(seed, labels)} for seed in (0, 1))
    ]
    summary = summarize_classes(rounds)
    assert list(summary["mae"]) == ["a", "b", "c"]
    recalls = [
        np.mean(branch(seed, labels).probabilities.argmax(axis=1)[labels == 1] == 1)
        for seed in (0, 1)
    ]
    assert summary["mae"]["b"]["recall"]["mean"] == pytest.approx(np.mean(recalls))
    assert summary["mae"]["b"]["recall"]["std"] == pytest.approx(np.std(recalls, ddof=1))


def test_the_summary_of_one_round_has_no_deviation():
    summary = summarize(rounds_of(0.7))
    assert summary["mae"]["accuracy"] == {"mean": 0.7, "std": None}


def test_predictions_survive_saving_with_names_of_any_script(tmp_path):
    labels = np.arange(7) % 3
    ids = np.array(["benign (1).png", "médecin/ü.png", "超音波.png", "a", "b", "c", "d" * 300])
    predictions = branch(0, labels)._replace(ids=ids)
    path = tmp_path / "folder" / "predictions.npz"
    save_predictions(path, predictions)
    loaded = load_predictions(path)
    for name, before, after in zip(Predictions._fields, predictions, loaded, strict=True):
        assert after.dtype == before.dtype, name
        np.testing.assert_array_equal(after, before)
    assert [p.name for p in path.parent.iterdir()] == ["predictions.npz"]


def test_the_same_predictions_are_the_same_bytes(tmp_path):
    labels = np.arange(7) % 3
    for name in ("first.npz", "second.npz"):
        save_predictions(tmp_path / name, branch(0, labels))
    first = (tmp_path / "first.npz").read_bytes()
    assert first == (tmp_path / "second.npz").read_bytes()
    # No clock is in it: the two were written within the two seconds of a zip file's time stamp.
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_predictions_of_an_older_version_take_their_groups_from_the_split(tmp_path):
    saved = branch(0, np.arange(4) % 2)
    old = {name: array for name, array in saved._asdict().items() if name != "groups"}
    path = tmp_path / "old.npz"
    np.savez(path, **old)
    with pytest.raises(NoGroupsError, match=r"old\.npz is damaged .it holds no groups"):
        load_predictions(path)
    group_of = {"3.png": 8, "2.png": 9, "1.png": 8, "0.png": 7, "other.png": 1}
    assert load_predictions(path, group_of).groups.tolist() == [7, 8, 9, 8]
    del group_of["2.png"]
    with pytest.raises(DamagedFileError, match=r"splits\.json does not name '2\.png'"):
        load_predictions(path, group_of)
    save_predictions(path, saved)
    assert load_predictions(path, {}).groups.tolist() == [0, 0, 1, 1]  # its own
