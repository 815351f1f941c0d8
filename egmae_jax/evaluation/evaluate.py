"""Probabilities of a whole split, the ensemble, and the metrics (paper sections 3.5 and 4.4)."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn import metrics as sk

from egmae_jax.core.files import REEVALUATE, DamagedFileError, read_npz, write_atomically
from egmae_jax.data.pipeline import Evaluation
from egmae_jax.evaluation import bootstrap, calibration
from egmae_jax.evaluation.bootstrap import Variance
from egmae_jax.method import fusion

PyTree = Any
METRICS = ("accuracy", "precision", "recall", "f1", "auc", "specificity", "pr_auc", "ece")
WEIGHTED_METRICS = ("accuracy", "precision", "recall", "f1", "auc")  # which have intervals
# Of one class against the rest.
CLASS_METRICS = (
    "precision",
    "recall",
    "specificity",
    "f1",
    "auc",
    "pr_auc",
)


class NoGroupsError(DamagedFileError):
    """Predictions of an older version, which hold no groups: splits.json has them."""


class Predictions(NamedTuple):
    """What a branch says of a split."""

    ids: np.ndarray  # [N] str, the images' files
    labels: np.ndarray  # int [N]
    probabilities: np.ndarray  # float [N, num_classes]
    groups: np.ndarray  # int [N]; images of one (patient, lesion, near-duplicates) are not split


def predict(program: Callable, images: Evaluation, batch_size: int) -> np.ndarray:
    """Class probabilities of all images, float32 [N, num_classes].

    Args:
        program: jitted, (images, indices [B], place of the first in the split) -> probabilities
            [B, num_classes].
        images: to classify.
        batch_size: of one call.
    """
    batches = [
        program(batch, indices, i * batch_size)
        for i, (batch, indices, _) in enumerate(images.batches(batch_size))
    ]
    return np.concatenate([np.asarray(batch) for batch in batches])[: len(images)]


def compute_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The paper's metrics and the project's own, by scikit-learn.

    Precision, recall, F1, specificity and PR-AUC are macro averages; AUC is one-vs-rest, macro; ECE
    is the expected calibration error of the predicted class over 15 bins of equal width.

    Args:
        labels: int [N], every class present.
        probabilities: [N, num_classes].
    """
    labels = np.asarray(labels)
    num_classes = probabilities.shape[1]
    classes = np.arange(num_classes)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=classes, average="macro", zero_division=0
    )
    one_hot = np.eye(num_classes)[labels]
    confusion = confusion_matrix(labels, predicted, num_classes)
    actual, said = confusion.sum(axis=1), confusion.sum(axis=0)
    true_negatives = len(labels) - actual - said + np.diag(confusion)
    return {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        # Of the one-hot labels: one-vs-rest, macro, for two classes as well as for more.
        "auc": float(sk.roc_auc_score(one_hot, probabilities, average="macro")),
        "specificity": float(np.mean(true_negatives / (len(labels) - actual))),
        "pr_auc": float(sk.average_precision_score(one_hot, probabilities, average="macro")),
        "ece": calibration.expected_error(labels, probabilities),
    }


def class_metrics(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """For every class against the rest: precision, recall (sensitivity), specificity, F1, AUCs.

    Args:
        labels: int [N], every class present.
        probabilities: [N, num_classes].
        classes: their names.

    Returns:
        {class: {metric of CLASS_METRICS: value}}.
    """
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(classes)), zero_division=0
    )
    return {
        name: {
            "precision": float(precision[c]),
            "recall": float(recall[c]),
            "specificity": float(np.mean(predicted[labels != c] != c)),
            "f1": float(f1[c]),
            "auc": float(sk.roc_auc_score(labels == c, probabilities[:, c])),
            "pr_auc": float(sk.average_precision_score(labels == c, probabilities[:, c])),
        }
        for c, name in enumerate(classes)
    }


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-probability of the true class (paper equation 10)."""
    return float(sk.log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """int [num_classes, num_classes]: rows are true classes, columns predicted ones."""
    return sk.confusion_matrix(labels, predicted, labels=np.arange(num_classes))


def bootstrap_intervals(
    labels: np.ndarray, probabilities: np.ndarray, *, groups: np.ndarray, seed: int, resamples: int
) -> dict[str, list[float]]:
    """95 % intervals of accuracy, precision, recall, F1 and AUC: how sure they are for a network.

    Groups are resampled, not images (`bootstrap.bootstrap_weights`). Of fewer than three groups
    nothing is known: an interval is 0 to 1.

    Args:
        labels: int [N].
        probabilities: [N, num_classes].
        groups: int [N]; images of a group (a patient, a lesion, near-duplicates) are no independent
            evidence. `np.arange(N)` says that every image is.
        seed: of the resamples.
        resamples: of the groups.
    """
    evidence = bootstrap.count_groups(labels, groups, probabilities.shape[1])
    if not bootstrap.can_resample(evidence.groups):
        return {name: [0.0, 1.0] for name in WEIGHTED_METRICS}
    rng = np.random.default_rng(seed)
    weights = bootstrap.bootstrap_weights(labels, groups, rng, resamples)
    drawn = weighted_metrics(labels, probabilities, weights)
    whole = weighted_metrics(labels, probabilities, np.ones((1, len(labels))))
    return {
        name: list(
            bootstrap.interval(
                name, float(whole[name][0]), Variance(float(values.var(ddof=1))), evidence
            )
        )
        for name, values in drawn.items()
    }


def weighted_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The paper's five metrics under many weightings of the images at once.

    Equal to scikit-learn's with `sample_weight`, which does one weighting at a time.

    Args:
        labels: int [N].
        probabilities: [N, num_classes].
        weights: [R, N]; no class may weigh nothing.

    Returns:
        Arrays [R].
    """
    classes = np.arange(probabilities.shape[1])
    actual = labels == classes[:, None]  # [C, N]
    said = probabilities.argmax(axis=1) == classes[:, None]
    hits, actual_weight, said_weight = (
        weights @ x.T for x in (actual & said, actual, said)
    )  # [R, C]
    f1 = 2 * hits / (actual_weight + said_weight)
    precision = hits / np.where(said_weight > 0, said_weight, 1)
    aucs = [_weighted_auc(probabilities[:, c], actual[c], weights) for c in classes]
    return {
        "accuracy": hits.sum(axis=1) / weights.sum(axis=1),
        "precision": precision.mean(axis=1),
        "recall": (hits / actual_weight).mean(axis=1),
        "f1": f1.mean(axis=1),
        "auc": np.mean(aucs, axis=0),
    }


def _weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R]: the weighted share of (positive, negative) pairs in the right order, ties a half."""
    order = np.argsort(scores)
    _, starts = np.unique(scores[order], return_index=True)
    up, down = (
        np.add.reduceat((weights * x)[:, order], starts, axis=1) for x in (positive, ~positive)
    )
    below = np.cumsum(down, axis=1) - down / 2
    return (up * below).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))


def score(
    validation: Mapping[str, Predictions],
    test: Mapping[str, Predictions],
    *,
    classes: Sequence[str],
    fusion_kind: str = "mean",
    resamples: int,
) -> dict[str, Any]:
    """Metrics, intervals and confusion matrices of every branch and of their ensemble.

    Args:
        validation: by branch; the fusion is fitted on these.
        test: by branch; these are scored.
        classes: names.
        fusion_kind: one of `fusion.KINDS`.
        resamples: of the bootstrap.

    Returns:
        {"groups": of the test images, "groups_by_class": {class: groups that hold one of it},
        "test": {branch: metrics}, "by_class": {branch: {class: metrics}}, "intervals":
        {branch: ...}, "confusion": {branch: ...}, "calibration": {branch: what was fitted on
        validation (`calibration.Fit`), "ece" and "loss" of the calibrated probabilities}}, with
        'ensemble' among the branches where there are several, and what its "fusion" fitted.
    """
    seen = {
        split: {name: branch.probabilities for name, branch in predictions.items()}
        for split, predictions in (("validation", validation), ("test", test))
    }
    labels, of_validation = (next(iter(part.values())).labels for part in (test, validation))
    groups = next(iter(test.values())).groups
    evidence = bootstrap.count_groups(labels, groups, len(classes))
    scores: dict[str, Any] = {
        "groups": evidence.groups,
        "groups_by_class": dict(zip(classes, evidence.by_class, strict=True)),
    }
    if len(test) > 1:
        fused = fusion.fit(fusion_kind, of_validation, [seen["validation"][name] for name in test])
        for part in seen.values():
            part["ensemble"] = fused.apply([part[name] for name in test])
        scores["fusion"] = {"kind": fusion_kind, "branches": list(test), **fused.fitted}
    probabilities = seen["test"]
    of_one = next(iter(validation.values())).groups
    fits = {
        name: calibration.fit(of_validation, p, of_one) for name, p in seen["validation"].items()
    }
    return scores | {
        "test": {name: compute_metrics(labels, p) for name, p in probabilities.items()},
        "by_class": {name: class_metrics(labels, p, classes) for name, p in probabilities.items()},
        "intervals": {
            name: bootstrap_intervals(labels, p, groups=groups, seed=0, resamples=resamples)
            for name, p in probabilities.items()
        },
        "confusion": {
            name: confusion_matrix(labels, p.argmax(axis=1), p.shape[1]).tolist()
            for name, p in probabilities.items()
        },
        "calibration": {
            name: _calibrated(labels, p, fits[name]) for name, p in probabilities.items()
        },
    }


def _calibrated(
    labels: np.ndarray, probabilities: np.ndarray, fit: calibration.Fit
) -> dict[str, Any]:
    scaled = fit.scaling.apply(probabilities)
    return {
        "temperature": fit.temperature,
        "least_probability": fit.least,
        "evidence": fit.evidence,
        "likeliest_temperature": fit.likeliest,
        "limit": fit.limit,
        "ece": calibration.expected_error(labels, scaled),
        "loss": cross_entropy(labels, scaled),
    }


def summarize(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over rounds of every branch's metrics: {branch: {metric: ...}}.

    The deviation is the sample's (n - 1); it is None for a single round.
    """
    return {
        branch: {name: _mean_std([r["test"][branch][name] for r in rounds]) for name in METRICS}
        for branch in rounds[0]["test"]
    }


def summarize_classes(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """As `summarize`, of every class against the rest: {branch: {class: {metric: ...}}}."""
    return {
        branch: {
            label: {
                name: _mean_std([r["by_class"][branch][label][name] for r in rounds])
                for name in CLASS_METRICS
            }
            for label in classes
        }
        for branch, classes in rounds[0]["by_class"].items()
    }


def _mean_std(values: Sequence[float]) -> dict[str, float | None]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Writes ids, labels, probabilities and groups as .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **predictions._asdict())
    write_atomically(path, buffer.getvalue())


def load_predictions(path: Path, group_of: Mapping[str, int] | None = None) -> Predictions:
    """Reads what `save_predictions` wrote.

    Args:
        path: of the .npz file.
        group_of: the group of each file, as splits.json has it, for predictions of an older version
            that hold none (`SavedRun.predictions` takes it from there).

    Raises:
        DamagedFileError: the file is not there, not whole, or `group_of` lacks one of its images.
        NoGroupsError: it holds no groups, and none are given.
    """
    if not path.exists():
        raise DamagedFileError(path, "it is missing", REEVALUATE)
    try:
        arrays = read_npz(path)
        if "groups" not in arrays:
            arrays["groups"] = _groups(path, arrays["ids"], group_of)
        found = Predictions(*(arrays[name] for name in Predictions._fields))
    except (ValueError, KeyError) as error:
        raise DamagedFileError(path, error) from None
    kinds = tuple(array.dtype.kind for array in found)
    dimensions = tuple(array.ndim for array in found)
    expected = ("U", "i", "f", "i"), (1, 1, 2, 1)
    if (kinds, dimensions) != expected or len({*map(len, found)}) > 1:
        said = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in found._asdict().items())
        raise DamagedFileError(path, f"it holds {said}")
    if not np.isfinite(found.probabilities).all():
        raise DamagedFileError(path, "a probability is no finite number")
    return found


def _groups(path: Path, ids: np.ndarray, group_of: Mapping[str, int] | None) -> np.ndarray:
    if group_of is None:
        reason = "it holds no groups: it is of an older version, whose splits.json has them"
        raise NoGroupsError(path, reason, REEVALUATE)
    files = ids.ravel().tolist()
    if missing := [file for file in files if file not in group_of]:
        reason = f"it holds no groups and splits.json does not name {missing[0]!r}"
        raise DamagedFileError(path, reason, REEVALUATE)
    return np.array([group_of[file] for file in files], int)
