"""Splits keep groups whole, are stratified and repeatable."""

import json

import numpy as np
import pytest

from egmae_jax.core.files import DamagedFileError, write_json
from egmae_jax.data import splits
from egmae_jax.data.datasets import DataError

SHARES = (0.7, 0.1, 0.2)


def random_images(seed, *, mixed=0.0, largest=6):
    """Labels and groups of a random data set; `mixed` is the share of groups of several classes."""
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(2, 8))
    class_of = np.repeat(np.arange(num_classes), rng.integers(12, 80, num_classes))
    groups = np.repeat(np.arange(len(class_of)), rng.integers(1, largest + 1, len(class_of)))
    is_first = np.diff(groups, prepend=-1) > 0  # each group has an image of its class
    is_mixed = (rng.random(len(class_of)) < mixed)[groups] & ~is_first
    is_other = is_mixed & (rng.random(len(groups)) < 0.5)
    labels = np.where(is_other, rng.integers(num_classes, size=len(groups)), class_of[groups])
    order = rng.permutation(len(labels))
    numbers = rng.permutation(len(class_of)) * 7  # names of groups: neither sorted nor dense
    return labels[order], numbers[groups][order], tuple("abcdefgh"[:num_classes])


def fixed(labels, groups, classes, seed=0):
    return splits.fixed_split(
        labels, groups, classes, validation_share=SHARES[1], test_share=SHARES[2], seed=seed
    )


def all_folds(labels, groups, classes, num_folds=5, seed=0):
    options = {"num_folds": num_folds, "validation_share": 0.1, "seed": seed}
    return np.stack(
        [splits.fold_split(labels, groups, classes, fold=k, **options) for k in range(num_folds)]
    )


def counts(parts, labels, num_parts=3):
    """[parts, classes]."""
    table = np.zeros((num_parts, labels.max() + 1))
    np.add.at(table, (parts, labels), 1)
    return table


def assert_groups_whole(parts, groups):
    part_of = {}
    for part, group in zip(parts.tolist(), groups.tolist(), strict=True):
        assert part_of.setdefault(group, part) == part, f"group {group} spans two parts"


@pytest.mark.parametrize("mixed", [0.0, 0.3])
def test_no_group_spans_two_parts_and_every_part_has_every_class(mixed):
    for seed in range(60):
        labels, groups, classes = random_images(seed, mixed=mixed)
        parts = fixed(labels, groups, classes, seed)
        assert_groups_whole(parts, groups)
        assert (counts(parts, labels) > 0).all()


def test_class_counts_are_off_by_no_more_than_the_largest_group():
    # With groups of one class each, the greedy rule never puts a group into a part that has its
    # share already. So a part holds less than its share plus one group, and lacks no more than the
    # two others have in excess.
    for seed in range(60):
        largest = 1 + seed % 9
        labels, groups, classes = random_images(seed, largest=largest)
        target = np.outer(SHARES, np.bincount(labels))
        off = counts(fixed(labels, groups, classes, seed), labels) - target
        assert (off < largest + 1e-9).all()
        assert (off > -2 * largest - 1e-9).all()


def test_no_group_spans_two_parts_of_a_fold():
    for seed in range(12):
        labels, groups, classes = random_images(seed, mixed=0.2)
        folds = all_folds(labels, groups, classes, num_folds=3 + seed % 4, seed=seed)
        np.testing.assert_array_equal((folds == splits.TEST).sum(axis=0), 1)  # each tested once
        for parts in folds:
            assert_groups_whole(parts, groups)
            assert (counts(parts, labels) > 0).all()


def test_a_seed_gives_one_split_whatever_the_numbers_of_the_groups():
    labels, groups, classes = random_images(1)
    _, dense = np.unique(groups, return_inverse=True)
    for split in (fixed, all_folds):
        expected = split(labels, groups, classes, seed=3)
        np.testing.assert_array_equal(split(labels, 10 * dense + 3, classes, seed=3), expected)
        assert (split(labels, groups, classes, seed=4) != expected).any()


def test_a_group_larger_than_any_part_takes_no_class_from_another_part():
    labels = np.repeat([0, 1], [100, 50])
    groups = np.concatenate([np.zeros(90), np.arange(1, 61)]).astype(int)
    parts = fixed(labels, groups, ("a", "b"))
    table = counts(parts, labels)
    assert (table > 0).all()
    np.testing.assert_array_equal(table[:, 0], [90, 3, 7])  # the other 10 in the ratio 1 : 2


@pytest.mark.parametrize(
    ("split", "groups", "message"),
    [
        (fixed, [30] * 5 + [31] * 3, "'rare' has 8 images in 2 groups.*at least 3 groups"),
        (all_folds, [30] * 5 + [31, 32, 33], "'rare' has 8 images in 4 groups.*at least 5 groups"),
    ],
)
def test_a_class_with_too_few_groups_is_named_with_its_counts(split, groups, message):
    labels = np.array([0] * 30 + [1] * 8)
    with pytest.raises(DataError, match=message):
        split(labels, np.array([*range(30), *groups]), ("common", "rare"))


def test_a_class_missing_from_a_part_is_an_error_that_says_what_to_change():
    # Class b comes only beside much of class a, which validation and test have enough of already.
    labels = np.array([0] * 60 + ([0] * 9 + [1]) * 3)
    groups = np.repeat([0, 1, 2, 3, 4, 5], [30, 20, 10, 10, 10, 10])
    with pytest.raises(DataError, match=r"no image of the class 'b'.* data\.split_seed"):
        fixed(labels, groups, ("a", "b"))


def test_splits_json_round_trips_with_exactly_these_keys(tmp_path):
    files = ["benign/benign (1).png", "normal/größe, 2.png", "normal/3.png"]
    digests = ["a" * 64, "b" * 64, "c" * 64]
    path = tmp_path / "new" / "splits.json"
    splits.write(
        path,
        [*files, "in no part.png"],
        ["benign", "normal", "normal", "normal"],
        np.array([0, 2, 1, splits.LEFT_OUT]),
        np.array([5, 7, 7, 9], np.int64),
        [*digests, "d" * 64],
    )
    rows = splits.read(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == rows  # one line an image
    keys = ("file", "label", "split", "group", "sha256")
    assert [tuple(row) for row in rows] == [keys] * 3
    assert [tuple(row.values()) for row in rows] == [
        (files[0], "benign", "train", 5, digests[0]),
        (files[1], "normal", "test", 7, digests[1]),
        (files[2], "normal", "validation", 7, digests[2]),
    ]


# --- the data set's own parts ---------------------------------------------------------------------


def own_parts(**changes):
    """Two classes in an official train and test part, 20 and 10 images, every image a group."""
    official = np.array(["train"] * 20 + ["test"] * 10)
    labels = np.arange(30) % 2
    options = {
        "official": official,
        "labels": labels,
        "groups": np.arange(30),
        "validation_share": 0.2,
        "test_share": 0.2,
        "drop_leaks": True,
        "seed": 0,
    }
    return splits.official_split(classes=("a", "b"), **(options | changes))


def test_official_parts_stay_and_validation_is_taken_from_train_where_it_is_missing():
    parts = own_parts()
    assert (parts[20:] == 2).all()
    assert (parts[:20] == 1).sum() == 4
    assert (parts[:20] == 0).sum() == 16
    official = np.array(["train"] * 14 + ["validation"] * 6 + ["test"] * 10)
    np.testing.assert_array_equal(own_parts(official=official), [0] * 14 + [1] * 6 + [2] * 10)
    with pytest.raises(DataError, match="train and validation, split off the official train part"):
        own_parts(groups=np.concatenate([np.arange(20) % 2, np.arange(20, 30)]))


def test_without_an_official_test_part_it_is_taken_by_groups():
    groups = np.arange(30) // 2
    labels = groups % 2
    parts = own_parts(official=np.array(["train"] * 30), labels=labels, groups=groups)
    assert 4 <= (parts == 2).sum() <= 8
    assert 4 <= (parts == 1).sum() <= 8
    for group in np.unique(groups):
        assert len(np.unique(parts[groups == group])) == 1


def test_training_images_of_a_tested_group_are_left_out():
    groups = np.arange(30)
    groups[:3] = groups[25]  # three training images are copies of a tested one
    parts = own_parts(groups=groups)
    assert (parts[:3] == splits.LEFT_OUT).all()
    assert (parts[3:] != splits.LEFT_OUT).all()
    assert not set(groups[parts == 0]) & set(groups[parts == 2])
    kept = own_parts(groups=groups, drop_leaks=False)
    assert (kept != splits.LEFT_OUT).all()


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({}, []),
        ({"on_conflict": "drop"}, [1, 3]),
        ({"deduplicate": True}, [0, 3]),  # rather the tested one is kept
        # Copies of a conflict are not kept in its place.
        ({"deduplicate": True, "on_conflict": "drop"}, [1, 3]),
    ],
)
def test_conflicts_and_copies_are_left_out_by_choice(options, images):
    out = splits.left_out(
        labels=np.array([0, 0, 1, 1, 0, 1]),
        pairs=np.array([[0, 1], [2, 3], [1, 3]]),
        pixel_hashes=np.array(["a", "a", "b", "b", "c", "d"]),
        official=np.array(["train", "test", "train", "train", "", ""]),
        **({"on_conflict": "keep", "deduplicate": False} | options),
    )
    assert np.flatnonzero(out).tolist() == images


def test_a_data_set_without_held_out_parts_has_no_official_split():
    splits.require_official(["train", "", "test"])
    with pytest.raises(DataError, match="of 3 images 1 are in the train part and 2 in none"):
        splits.require_official(["train", "", ""])


def test_the_account_adds_up():
    text = splits.account(
        {"train": 70, "validation": 10, "test": 20}, {"copies": 3, "leaks": 0}, 2, {"x": 4, "y": 1}
    )
    assert text == (
        "110 images found: 70 train, 10 validation, 20 test, 3 left out (3 copies), 2 unreadable, "
        "5 of classes not selected (x, y)"
    )
    assert splits.account({"train": 1}, {"copies": 0}, 0, {}) == "1 images found: 1 train"


@pytest.mark.parametrize("cause", ["none", "leaks"])
def test_an_official_part_without_a_class_is_named(cause):
    changes = {"official": np.array(["train"] * 14 + ["validation"] * 6 + ["test"] * 10)}
    if cause == "none":
        changes["labels"] = np.array([0] * 14 + [0, 1] * 8)
    else:
        changes["groups"] = np.arange(30)
        changes["groups"][1:14:2] = 21  # all training images of b are of a tested patient
    with pytest.raises(DataError, match=r"The official train part has no image of the class 'b'"):
        own_parts(**changes)


@pytest.mark.parametrize("content", [{}, [7], [{}], [{"file": "../1.png"}], [{"file": "/a/1.png"}]])
def test_splits_json_of_other_content_is_damaged(file, content):
    row = {"file": "1.png", "label": "cat", "split": "train", "group": 0, "sha256": "0" * 64}
    write_json(file, content if content in ({}, [7], [{}]) else [row | content[0]])
    with pytest.raises(DamagedFileError, match=r"file\.x is damaged .*restore it"):
        splits.read(file)
