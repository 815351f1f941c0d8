"""Maps test images by their features, and finds training images like those predicted wrongly."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from egmae_jax.evaluation.features import Features, load_features
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.explain.cam_study import read_view
from egmae_jax.run.saved_run import RunError, SavedRun
from egmae_jax.run.workdir import local_path

MAX_POINTS = 2000  # most points on the map, evenly spaced among the test images
_FEWEST = 5  # images that a map is drawn of
_COMPONENTS = 50  # principal components that t-SNE starts from, as its authors advise
_PERPLEXITY = 30.0


class Neighbour(NamedTuple):
    """A training image that is similar to a test image."""

    file: str
    label: str
    similarity: float  # cosine of the features
    pixels: np.ndarray  # uint8 [H, W, 3 or 1]


class Case(NamedTuple):
    """A test image that is classified wrongly, and the training images most similar to it."""

    file: str
    label: str
    predicted: str
    probability: float
    pixels: np.ndarray  # uint8 [H, W, 3 or 1]
    neighbours: list[Neighbour]  # the most similar one first


def read(run: SavedRun) -> Features:
    """Reads the features of training and test images by the first round's `SavedRun.branch`.

    Raises:
        RunError: the run has none, because an earlier version evaluated it or evaluation.report was
            False.
        DamagedFileError: the file is damaged.
    """
    path = run.paths.features(run.branch().name, 0)
    if not path.exists():
        raise RunError(f"There is no {path}. --stage=evaluate with evaluation.report writes it.")
    return load_features(path)


def project(features: np.ndarray) -> np.ndarray | None:
    """Computes a map of images by t-SNE of their principal components, the same in every call.

    Args:
        features: float [N, D].

    Returns:
        float [N, 2]; None for fewer than five images.
    """
    count = len(features)
    if count < _FEWEST:
        return None
    components = min(_COMPONENTS, *features.shape)
    reduced = PCA(components, random_state=0).fit_transform(features)
    t_sne = TSNE(init="pca", perplexity=min(_PERPLEXITY, (count - 1) / 3), random_state=0)
    # Where cores are busy, the threads of its short loops wait for each other: 30 times slower.
    with threadpool_limits(1):
        return t_sne.fit_transform(reduced)


def nearest(features: np.ndarray, of: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the most similar features by cosine.

    Args:
        features: float [N, D].
        of: features whose neighbours are sought, float [M, D].
        count: number of neighbours.

    Returns:
        Indices into `features`, int [M, count], and similarities, float [M, count].
    """
    search = NearestNeighbors(n_neighbors=min(count, len(features)), metric="cosine").fit(features)
    distances, indices = search.kneighbors(of)
    return indices, 1 - distances


def wrong_cases(
    run: SavedRun,
    features: Features,
    predictions: Predictions,
    data_dir: Path,
    *,
    most: int,
    neighbours: int,
) -> list[Case]:
    """Returns the wrong test images that are predicted with the highest probability.

    Args:
        run: run whose fine-tuning has finished.
        features: result of `read`.
        predictions: test predictions of `SavedRun.branch` in the first round.
        data_dir: folder of the images.
        most: largest number of cases.
        neighbours: number of training images for each.

    Raises:
        RunError: an image is missing or has changed since the run.
    """
    folder, rows = local_path(data_dir), {row["file"]: row for row in run.split(0)}
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder}; --data_dir sets the folder of the images.")
    classes, predicted = run.classes(), predictions.probabilities.argmax(axis=1)
    confidence = predictions.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != predictions.labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    if not len(wrong):
        return []
    train, test = features.part("train"), features.part("test")
    position = {file: i for i, file in enumerate(test.ids.tolist())}
    of = test.features[[position[file] for file in predictions.ids[wrong].tolist()]]

    def neighbour(k: int, similarity: float) -> Neighbour:
        file = str(train.ids[k])
        view = read_view(folder, run, rows[file])
        return Neighbour(file, classes[train.labels[k]], float(similarity), view)

    cases = []
    found = nearest(train.features, of, neighbours)
    for i, indices, similarities in zip(wrong.tolist(), *found, strict=True):
        file = str(predictions.ids[i])
        pixels = read_view(folder, run, rows[file])
        label, guess = classes[predictions.labels[i]], classes[predicted[i]]
        alike = list(map(neighbour, indices, similarities))
        cases.append(Case(file, label, guess, float(confidence[i]), pixels, alike))
    return cases
