"""The labels that a share leaves: whole groups, of every class, nested and different by seed."""

import itertools

import numpy as np
import pytest

from egmae_jax.data import label_share
from egmae_jax.data.datasets import DataError
from tests.data.test_splits import random_images

SHARES = (0.02, 0.1, 0.25, 0.5, 0.9, 1.0)


def draw(images, share, seed=0):
    return label_share.draw(*images, share=share, seed=seed)


@pytest.mark.parametrize("mixed", [0.0, 0.3])
def test_groups_are_whole_and_smaller_shares_are_subsets_of_larger_ones(mixed):
    for seed in range(30):
        labels, groups, classes = random_images(seed, mixed=mixed)
        drawn = [draw((labels, groups, classes), share, seed) for share in SHARES]
        for kept in drawn:
            assert not set(groups[kept]) & set(groups[~kept])
            assert set(labels[kept]) == set(range(len(classes)))
        for smaller, larger in itertools.pairwise(drawn):
            assert not (smaller & ~larger).any()
        assert drawn[-1].all()


def test_each_class_keeps_its_share_to_within_half_a_group():
    for seed in range(30):
        labels, groups, classes = random_images(seed, largest=6)
        for share in SHARES:
            kept = draw((labels, groups, classes), share, seed)
            for label in range(len(classes)):
                total = (labels == label).sum()
                # Six images are the largest group; at least one group is kept.
                assert abs((kept & (labels == label)).sum() - share * total) <= max(3, share * 6, 6)


def test_of_two_equally_near_numbers_the_larger_is_kept():
    labels = np.repeat([0, 1], 7)
    kept = label_share.draw(labels, np.arange(14), ("a", "b"), share=0.5, seed=0)
    assert np.bincount(labels[kept]).tolist() == [4, 4]


def test_shares_of_single_images_are_exact_and_drawn_uniformly():
    labels = np.repeat([0, 1], [80, 20])
    groups, classes = np.arange(100), ("a", "b")
    drawn = np.stack([draw((labels, groups, classes), 0.1, seed) for seed in range(400)])
    assert (drawn[:, labels == 0].sum(axis=1) == 8).all()
    assert (drawn[:, labels == 1].sum(axis=1) == 2).all()
    # Each image in a tenth of the draws: the standard error is .015.
    assert abs(drawn.mean(axis=0) - 0.1).max() < 0.06
    assert len({kept.tobytes() for kept in drawn}) > 390
    np.testing.assert_array_equal(drawn[7], draw((labels, groups, classes), 0.1, 7))


def test_a_class_that_would_lose_all_labels_is_named():
    """All of 'b' are in one group with an image of the rarer 'c', which has other groups, too."""
    labels = np.repeat([0, 1, 2, 2], [30, 20, 1, 10])
    groups = np.array([*range(30), *[30] * 21, *range(31, 41)])
    with pytest.raises(DataError, match=r"label_share=0\.01 keeps no label of the class 'b'"):
        draw((labels, groups, ("a", "b", "c")), 0.01)
