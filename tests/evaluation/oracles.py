"""Made-up predictions, and metrics by loops over classes."""

import numpy as np
from scipy import special

from egmae_jax.evaluation.predictions import Predictions


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
        called = scores >= threshold
        new_recall = (called & positive).sum() / positive.sum()
        total += (new_recall - recall) * (called & positive).sum() / called.sum()
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
    result["balanced_accuracy"] = result["recall"]
    by_chance = sum(np.mean(labels == c) * np.mean(predicted == c) for c in range(num_classes))
    result["kappa"] = (result["accuracy"] - by_chance) / (1 - by_chance)
    result["ece"] = 0.0
    for k in range(15):
        inside = [i for i, p in enumerate(probabilities) if k / 15 < max(p) <= (k + 1) / 15]
        if inside:
            confidence = np.mean([max(probabilities[i]) for i in inside])
            accuracy = np.mean([predicted[i] == labels[i] for i in inside])
            result["ece"] += len(inside) / len(labels) * abs(accuracy - confidence)
    return result


def branch(seed, labels):
    logits = np.random.default_rng(seed).normal(size=(len(labels), 3)) + np.eye(3)[labels]
    probabilities = special.softmax(logits, axis=1).astype(np.float32)
    ids = np.array([f"{i}.png" for i in range(len(labels))])
    return Predictions(ids, labels, probabilities, np.arange(len(labels)) // 2)
