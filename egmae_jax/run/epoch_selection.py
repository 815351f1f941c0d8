"""The validation metric by which the epoch of a fine-tuning is selected, finetune.select."""

import numpy as np

from egmae_jax.evaluation.metrics import TITLES, compute_metrics, cross_entropy

METRICS = ("auc", "accuracy", "f1", "balanced_accuracy", "loss")  # values of finetune.select
_LOGGED = ("auc", "accuracy")  # metrics that are logged in any case


def score(
    select: str, labels: np.ndarray, probabilities: np.ndarray
) -> tuple[tuple[float, ...], dict[str, float]]:
    """Scores an epoch by its validation predictions.

    Args:
        select: one of `METRICS`.
        labels: label of each image, int [N], in which every class occurs.
        probabilities: predicted probabilities, float [N, num_classes].

    Returns:
        The score, which is the metric and then the negative loss (for 'loss' only the latter), and
        the metrics to log by name, such as 'validation_auc'.
    """
    metrics = compute_metrics(labels, probabilities)
    loss = cross_entropy(labels, probabilities)
    row = {f"validation_{name}": metrics[name] for name in (*_LOGGED, select) if name in metrics}
    row["validation_loss"] = loss
    return ((-loss,) if select == "loss" else (metrics[select], -loss)), row


def describe(select: str) -> str:
    """Returns words for the best value, 'highest validation AUC' or 'lowest validation loss'."""
    if select == "loss":
        return "lowest validation loss"
    title = TITLES[select]
    return f"highest validation {title if title.isupper() else title.lower()}"
