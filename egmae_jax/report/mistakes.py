"""The wrong test images of the highest loss, by their true class, for the report."""

from typing import NamedTuple

import numpy as np

from egmae_jax.explain.cam_study import read_view
from egmae_jax.report.content import Content
from egmae_jax.run.saved_run import RunError


class Mistake(NamedTuple):
    """A test image that the run's last classifier predicts wrongly."""

    file: str
    label: str
    predicted: str
    probability: float  # of the predicted class
    loss: float  # cross-entropy in nats
    pixels: np.ndarray  # uint8 [H, W, 3 or 1]


class Mistakes(NamedTuple):
    """The worst mistakes of a run."""

    by_class: dict[str, list[Mistake]]  # by true class, the highest loss first
    num_wrong: dict[str, int]  # all mistakes by true class, also those not shown
    shown: int


def worst(run: Content, most: int) -> Mistakes:
    """Finds the wrong test images of the highest loss, of all folds, or of the first seed.

    Args:
        run: run that has been evaluated; its last classifier is the ensemble if there is one.
        most: largest number of images.

    Raises:
        RunError: an image is missing or has changed since the run.
    """
    if not run.data_dir.is_dir():
        raise RunError(f"There is no folder {run.data_dir}; --data_dir sets that of the images.")
    rounds = run.saved.rounds if run.saved.paths.folds else run.saved.rounds[:1]
    found, num_wrong = [], dict.fromkeys(run.classes, 0)
    for index in rounds:
        test = run.rounds[index]
        probabilities = test.probabilities[-1]
        of_label = probabilities[np.arange(len(test.labels)), test.labels]
        losses = -np.log(np.maximum(of_label, np.finfo(np.float32).tiny))
        for i in np.flatnonzero(probabilities.argmax(axis=1) != test.labels).tolist():
            num_wrong[run.classes[test.labels[i]]] += 1
            found.append((float(losses[i]), index, i))
    by_class: dict[str, list[Mistake]] = {name: [] for name in run.classes}
    files = {index: {row["file"]: row for row in run.saved.split(index)} for index in rounds}
    shown = sorted(found, reverse=True)[:most]
    for loss, index, i in shown:
        test = run.rounds[index]
        file, probabilities = str(test.ids[i]), test.probabilities[-1][i]
        label, guess = run.classes[test.labels[i]], int(probabilities.argmax())
        pixels = read_view(run.data_dir, run.saved, files[index][file])
        mistake = Mistake(
            file, label, run.classes[guess], float(probabilities[guess]), loss, pixels
        )
        by_class[label].append(mistake)
    return Mistakes(by_class, num_wrong, len(shown))
