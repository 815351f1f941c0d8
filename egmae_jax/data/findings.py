"""What a user should know of a data set before training on it, and what to do about it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from egmae_jax.data import duplicates, pixels
from egmae_jax.data.pixels import Finding
from egmae_jax.data.prepare import Prepared

_SUSPICIOUS = 0.1  # balanced accuracy above chance from which a confounder is worth a warning
_UNEQUAL = 3.0  # images of the largest class to those of the smallest
_FEW = 10  # groups of a class in the test part; with fewer its figures are rough
_FOLDS = 5
_CORNER = 4  # thumbnail pixels of 32
_ADVICE = {
    "size": "Find out why: other devices, sources or crops by class? A network sees all images at "
    "one size, but also how much each was enlarged or cut. Reduce all to one size and one aspect "
    "before training (--config.data.resize=squash does the latter), and test on images of another "
    "source.",
    "mode": "--config.data.color=grey makes one channel of all images, so that grey or colour "
    "tells nothing.",
    "file type": "Compression leaves traces that a network sees. Save all images in one format and "
    "quality, from the originals if they are there.",
    "size and mode": "Find out what of both differs by class; --config.data.color=grey and images "
    "of one size take it away.",
    "corners": "Where tissue fills the picture this can be the disease; else it is letters, "
    "markers, borders or another device. Look at them in classes_01.png, crop what is not of the "
    "patient, and see by `egmae explain` whether the network looks there.",
    "brightness": "It can be the disease's or the device's: compare the classes in classes_01.png. "
    "If they come from several devices or hospitals, test on images of one that was not trained "
    "on.",
}


def confounders(prepared: Prepared) -> dict[str, float]:
    """Balanced accuracy with which what is no disease tells the class, cross-validated by groups.

    A shallow tree predicts the class from an image's height and width, from the mode its file is
    stored in, from both, from the file's type, from the four corners of its thumbnail, and from the
    mean and spread of its grey values. Images of a group are in one fold. Chance is 1 / number of
    classes; a network can learn what lies above the threshold instead of the disease. The threshold
    is a tenth above chance or, where there are few groups, two standard errors of chance above it.

    Returns:
        Chance, threshold and the balanced accuracy of each feature, by name; empty where a class
        has fewer than two groups, so that there is nothing to test on.
    """
    labels, groups, num_classes = prepared.labels, prepared.groups, len(prepared.classes)
    evidence = _groups_by_class(prepared)
    folds = min(_FOLDS, int(evidence.min()))
    if folds < 2:
        return {}
    chance = 1 / num_classes
    error = np.sqrt((chance * (1 - chance) / evidence).sum()) / num_classes
    scores = {"chance": chance, "threshold": float(chance + max(_SUSPICIOUS, 2 * error))}
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    parts = list(split.split(np.zeros(len(labels)), labels, groups))
    for name, values in _features(prepared).items():
        tree = DecisionTreeClassifier(max_depth=6, class_weight="balanced", random_state=0)
        predicted = cross_val_predict(tree, values, labels, cv=parts)
        scores[name] = float(balanced_accuracy_score(labels, predicted))
    return scores


def _groups_by_class(prepared: Prepared) -> np.ndarray:
    """How many groups (patients, lesions, near-duplicates) each class has, int [classes]."""
    pairs = np.unique(np.stack([prepared.labels, prepared.groups]), axis=1)
    return np.bincount(pairs[0], minlength=len(prepared.classes))


def _features(prepared: Prepared) -> dict[str, np.ndarray]:
    modes = _one_hot(prepared.modes)
    types = _one_hot([file.rpartition(".")[2].lower() for file in prepared.files])
    thumbnails = prepared.descriptors.astype(np.float32)
    near, far = slice(None, _CORNER), slice(-_CORNER, None)
    corners = [thumbnails[:, rows, columns] for rows in (near, far) for columns in (near, far)]
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
    """All findings, the gravest first.

    Args:
        prepared: the data set.
        audit: what else `audit.audit` says of it.
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
            f"Images that cannot be read: {count}, such as {audit['unreadable'][0]} (all in "
            "audit.json).",
            "A run stops at them. Mend or delete them, or let --config.data.on_error=skip leave "
            "them out.",
        )


def _across_classes(audit: Mapping[str, Any]) -> Iterator[Finding]:
    if count := audit["near_duplicates"]["pairs_across_classes"]:
        first, second = audit["near_duplicates"]["conflicts"][0]
        yield Finding(
            "labels",
            f"Pairs of near-identical images with different labels: {count}, such as {first} and "
            f"{second}.",
            "One of the labels is wrong, or the image shows both. They are first in "
            "near_duplicates_01.png, in red: mend the labels, or let "
            "--config.data.on_conflict=drop leave both images of a pair out.",
        )


def _across_parts(prepared: Prepared) -> Iterator[Finding]:
    official = np.array([part or "none" for part in prepared.official])
    held_out = prepared.held_out
    if not held_out.any():
        return
    parted = [
        members
        for members in duplicates.members(prepared.groups)
        if len(np.unique(official[members])) > 1 and held_out[members].any()
    ]
    if not parted:
        return
    training = sum(int((~held_out[members]).sum()) for members in parted)
    yield Finding(
        "leaks",
        "Groups of images that belong together (near-identical, or of one patient or lesion) in "
        f"several official parts: {len(parted)}; {training} of their images are in training.",
        "Figures on the official test part are too good where these stay. data.protocol='grouped' "
        "splits all images anew, by groups; 'official' keeps the parts and, by data.drop_leaks, "
        f"leaves these {training} training images out.",
    )


def _confounded(prepared: Prepared, scores: Mapping[str, float]) -> Iterator[Finding]:
    if not scores:
        lacking = prepared.classes[_groups_by_class(prepared).argmin()]
        yield Finding(
            "confounders",
            "Whether size, mode or the like tell the class cannot be tested: the images of "
            f"{lacking} are one group.",
            "A run needs three groups of each class (patients, lesions, near-duplicates): gather "
            "more images of it, or leave the class out by --config.data.classes.",
        )
        return
    suspicious = [name for name in _ADVICE if scores[name] > scores["threshold"]]
    if {"size", "mode"} & set(suspicious):
        suspicious = [name for name in suspicious if name != "size and mode"]
    for name in suspicious:
        yield Finding(
            name,
            f"The class shows in {name} alone: balanced accuracy {scores[name]:.3f}, where chance "
            f"is {scores['chance']:.3f}.",
            _ADVICE[name],
        )


def _copies(audit: Mapping[str, Any]) -> Iterator[Finding]:
    near, same = audit["near_duplicates"], audit["identical_pixels"]
    if count := near["pairs"]:
        extra = same["extra_copies"]
        yield Finding(
            "near-duplicates",
            f"Pairs of near-identical images: {count}, in {near['groups']} groups"
            + (f"; of identical ones {extra} could go." if extra else "."),
            "Look at them in near_duplicates_01.png and those that follow. A run keeps each group "
            "in one part (data.protocol='grouped'); 'image_level' would test on what was trained "
            "on."
            + (" --config.data.deduplicate=True keeps one of identical images." if extra else ""),
        )


def _classes(prepared: Prepared) -> Iterator[Finding]:
    counts = np.bincount(prepared.labels, minlength=len(prepared.classes))
    least, most = counts.argmin(), counts.argmax()
    small, large = prepared.classes[least], prepared.classes[most]
    ratio, share = counts[most] / counts[least], counts[most] / counts.sum()
    if ratio >= _UNEQUAL:
        yield Finding(
            "imbalance",
            f"Classes are unequal: {counts[most]} images of {large}, {counts[least]} of {small}, "
            f"{ratio:.1f} times fewer. Always saying {large} has accuracy {share:.3f}.",
            "Judge by macro F1, macro recall and each class's figures, not by accuracy: the report "
            f"has them. Images of {small} are worth most.",
        )
    evidence = zip(prepared.classes, _groups_by_class(prepared).tolist(), strict=True)
    if few := [f"{name} there are {count} groups" for name, count in evidence if count < 5 * _FEW]:
        yield Finding(
            "few images",
            f"Of {', '.join(few)}: a test part of a fifth has fewer than {_FEW} of them.",
            "Their figures will be rough, as the intervals say. Gather more, or test all images by "
            "--config.rounds.kind=folds.",
        )


def _patients(prepared: Prepared) -> Iterator[Finding]:
    copies = sum(len(members) - 1 for members in prepared.near_duplicates)
    if len(np.unique(prepared.groups)) == len(prepared.groups) - copies:
        yield Finding(
            "patients",
            "Which images are of one patient is not known: only near-identical ones are kept "
            "together.",
            "If there are several of a patient, say so, or the test is of memory: "
            "--config.data.group_pattern finds the patient in a file's name, and manifest.csv has "
            "a column 'group'.",
        )
