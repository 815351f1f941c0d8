"""Problems of a data set that affect training or its results, with advice on each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from egmae_jax.data import duplicates, pixels
from egmae_jax.data.pixels import Finding
from egmae_jax.data.prepare import Prepared

_SUSPICIOUS = 0.1  # warn if a confounder's balanced accuracy exceeds chance by more than this
_IMBALANCED = 3.0  # warn from this ratio of the largest class to the smallest
_FEW_GROUPS = 10  # warn if a class has fewer groups in the test part, as its metrics are imprecise
_FOLDS = 5
_CORNER = 4  # side of a corner in pixels of the 32x32 thumbnail
_ADVICE = {
    "size": "Find out why the size differs by class: different devices, sources or crops? A "
    "network sees all images at one size, but it can also see how much each was enlarged or "
    "cropped. Resize all images to one size and aspect ratio before training "
    "(--config.data.resize=squash makes the aspect ratio equal), and test on images from another "
    "source.",
    "mode": "--config.data.color=grey converts all images to one channel, so that the mode no "
    "longer reveals the class.",
    "file type": "Compression leaves traces that a network can see. Save all images in one format "
    "and quality, from the originals if possible.",
    "size and mode": "Find out how size and mode together differ by class. "
    "--config.data.color=grey and images of one size remove these differences.",
    "corners": "If tissue fills the images, this can be the disease; otherwise it is text, "
    "markers, borders or the device. Look at the corners in classes_01.png, crop everything that "
    "is not the patient, and check with `egmae explain` whether the network uses the corners.",
    "brightness": "The cause can be the disease or the device: compare the classes in "
    "classes_01.png. If the images come from several devices or hospitals, test on images from one "
    "that is not in the training part.",
}


def confounders(prepared: Prepared) -> dict[str, float]:
    """Measures how well features that are unrelated to the disease predict the class.

    A shallow decision tree predicts the class from the height and width of an image, from the
    storage mode of its file, from both, from the file type, from the four corners of the thumbnail,
    and from the mean and standard deviation of the grey values. The score is the balanced accuracy
    of a cross-validation in which each group is in one fold. A network may learn a feature that
    scores above the threshold instead of the disease. The threshold is .1 above chance or, if there
    are few groups, two standard errors of chance above it.

    Args:
        prepared: data set to measure.

    Returns:
        'chance' (1 / number of classes), 'threshold', and the balanced accuracy of each feature by
        its name; empty if a class has fewer than two groups, which leaves nothing to test on.
    """
    labels, groups, num_classes = prepared.labels, prepared.groups, len(prepared.classes)
    group_counts = _groups_by_class(prepared)
    folds = min(_FOLDS, int(group_counts.min()))
    if folds < 2:
        return {}
    chance = 1 / num_classes
    error = np.sqrt((chance * (1 - chance) / group_counts).sum()) / num_classes
    scores = {"chance": chance, "threshold": float(chance + max(_SUSPICIOUS, 2 * error))}
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    parts = list(split.split(np.zeros(len(labels)), labels, groups))
    for name, values in _features(prepared).items():
        tree = DecisionTreeClassifier(max_depth=6, class_weight="balanced", random_state=0)
        predicted = cross_val_predict(tree, values, labels, cv=parts)
        scores[name] = float(balanced_accuracy_score(labels, predicted))
    return scores


def _groups_by_class(prepared: Prepared) -> np.ndarray:
    """Counts the groups (patients, lesions, near-duplicates) of each class, int [num_classes]."""
    pairs = np.unique(np.stack([prepared.labels, prepared.groups]), axis=1)
    return np.bincount(pairs[0], minlength=len(prepared.classes))


def _features(prepared: Prepared) -> dict[str, np.ndarray]:
    """Returns the features of `confounders` by name, each [N, num_values]."""
    modes = _one_hot(prepared.modes)
    types = _one_hot([file.rpartition(".")[2].lower() for file in prepared.files])
    thumbnails = prepared.descriptors.astype(np.float32)
    first, last = slice(None, _CORNER), slice(-_CORNER, None)
    corners = [thumbnails[:, rows, columns] for rows in (first, last) for columns in (first, last)]
    return {
        "size": prepared.sizes,
        "mode": modes,
        "size and mode": np.concatenate([prepared.sizes, modes], axis=1),
        "file type": types,
        "corners": np.stack(
            [f(corner, axis=(1, 2)) for corner in corners for f in (np.mean, np.std)], axis=1
        ),
        "brightness": np.stack([f(thumbnails, axis=(1, 2)) for f in (np.mean, np.std)], axis=1),
    }


def _one_hot(names: Sequence[str] | np.ndarray) -> np.ndarray:
    values, indices = np.unique(names, return_inverse=True)
    return np.eye(len(values))[indices]


def findings(prepared: Prepared, audit: Mapping[str, Any]) -> list[Finding]:
    """Lists all problems of a data set, the most serious first.

    Args:
        prepared: data set.
        audit: results of `audit.audit` other than the findings.
    """
    return [
        *_unreadable(audit),
        *_across_classes(audit),
        *_across_parts(prepared),
        *_confounded(prepared, audit["confounders"]),
        *_copies(audit),
        *_classes(prepared),
        *_patients(prepared),
        *pixels.findings(prepared.files, prepared.pixels, prepared.intensity),
    ]


def _unreadable(audit: Mapping[str, Any]) -> Iterator[Finding]:
    if count := len(audit["unreadable"]):
        yield Finding(
            "unreadable",
            f"Images that cannot be read: {count}, such as {audit['unreadable'][0]} (audit.json "
            "lists all).",
            "A run stops with an error. Repair or delete these images, or leave them out with "
            "--config.data.on_error=skip.",
        )


def _across_classes(audit: Mapping[str, Any]) -> Iterator[Finding]:
    if count := audit["near_duplicates"]["pairs_across_classes"]:
        first, second = audit["near_duplicates"]["conflicts"][0]
        yield Finding(
            "labels",
            f"Pairs of near-identical images with different labels: {count}, such as {first} and "
            f"{second}.",
            "One of the labels is wrong, or the image shows both classes. near_duplicates_01.png "
            "shows these pairs first, in red. Correct the labels, or leave out both images of each "
            "pair with --config.data.on_conflict=drop.",
        )


def _across_parts(prepared: Prepared) -> Iterator[Finding]:
    official = np.array([part or "none" for part in prepared.official])
    held_out = prepared.held_out
    if not held_out.any():
        return
    leaking = [
        members
        for members in duplicates.members(prepared.groups)
        if len(np.unique(official[members])) > 1 and held_out[members].any()
    ]
    if not leaking:
        return
    training = sum(int((~held_out[members]).sum()) for members in leaking)
    yield Finding(
        "leaks",
        "Groups (near-identical images, or images of one patient or lesion) that are in several "
        f"official parts: {len(leaking)}; {training} of their images are in training.",
        "These images make results on the official test part too good. data.protocol='grouped' "
        "splits all images again, by groups; 'official' keeps the parts and, with data.drop_leaks, "
        f"leaves out these {training} training images.",
    )


def _confounded(prepared: Prepared, scores: Mapping[str, float]) -> Iterator[Finding]:
    groups = _groups_by_class(prepared)
    if not groups.all():
        return  # `_classes` reports classes without images
    if not scores:
        smallest = prepared.classes[groups.argmin()]
        yield Finding(
            "confounders",
            "It cannot be tested whether size, mode and similar features reveal the class: the "
            f"images of {smallest} are one group.",
            "A run needs three groups of each class (patients, lesions, near-duplicates): collect "
            "more images of this class, or leave it out with --config.data.classes.",
        )
        return
    suspicious = [name for name in _ADVICE if scores[name] > scores["threshold"]]
    if {"size", "mode"} & set(suspicious):
        suspicious = [name for name in suspicious if name != "size and mode"]
    for name in suspicious:
        verb = "predict" if name in ("corners", "size and mode") else "predicts"
        yield Finding(
            name,
            f"The {name} alone {verb} the class: balanced accuracy {scores[name]:.3f}, where "
            f"chance is {scores['chance']:.3f}.",
            _ADVICE[name],
        )


def _copies(audit: Mapping[str, Any]) -> Iterator[Finding]:
    near, same = audit["near_duplicates"], audit["identical_pixels"]
    if count := near["pairs"]:
        extra = same["extra_copies"]
        yield Finding(
            "near-duplicates",
            f"Pairs of near-identical images: {count}, in {near['groups']} groups"
            + (f"; {extra} are extra copies of identical images." if extra else "."),
            "Look at them in near_duplicates_01.png and the following pages. A run keeps each "
            "group in one part (data.protocol='grouped'); 'image_level' would test on images that "
            "were trained on."
            + (" --config.data.deduplicate=True removes the extra copies." if extra else ""),
        )


def _classes(prepared: Prepared) -> Iterator[Finding]:
    counts = np.bincount(prepared.labels, minlength=len(prepared.classes))
    if empty := [prepared.classes[k] for k in np.flatnonzero(counts == 0)]:
        yield Finding(
            "empty classes",
            f"Classes without an image that can be read: {', '.join(empty)}.",
            "Repair or replace their files, or leave these classes out with --config.data.classes.",
        )
    least, most = np.where(counts, counts, counts.max()).argmin(), counts.argmax()
    small, large = prepared.classes[least], prepared.classes[most]
    ratio, share = counts[most] / counts[least], counts[most] / counts.sum()
    if ratio >= _IMBALANCED:
        yield Finding(
            "imbalance",
            f"The classes are imbalanced: {counts[most]} images of {large}, but {counts[least]} of "
            f"{small}, {ratio:.1f} times fewer. Always predicting {large} has accuracy "
            f"{share:.3f}.",
            "Judge results by macro F1, macro recall and the metrics of each class, which the "
            f"report has, not by accuracy. More images of {small} would help most.",
        )
    group_counts = zip(prepared.classes, _groups_by_class(prepared).tolist(), strict=True)
    limit = 5 * _FEW_GROUPS
    if few := [f"{name} has {count} groups" for name, count in group_counts if 0 < count < limit]:
        yield Finding(
            "few images",
            f"{', '.join(few)}: a test part of a fifth has fewer than {_FEW_GROUPS} of them.",
            "The metrics of these classes will be imprecise, as their intervals show. Collect more "
            "images, or test on all images with --config.rounds.kind=folds.",
        )


def _patients(prepared: Prepared) -> Iterator[Finding]:
    copies = sum(len(members) - 1 for members in prepared.near_duplicates)
    if len(np.unique(prepared.groups)) == len(prepared.groups) - copies:
        yield Finding(
            "patients",
            "It is not known which images are of one patient: only near-identical images are kept "
            "in one part.",
            "If patients have several images, define the patients, or the test measures "
            "memorisation: --config.data.group_pattern extracts the patient from a file's name, "
            "and manifest.csv has a column 'group'.",
        )
