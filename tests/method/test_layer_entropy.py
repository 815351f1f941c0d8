"""Which layers are selected, of given entropies and numbers of parameters."""

import numpy as np
import pytest

from egmae_jax.method.layer_entropy import select

SIZES = {"a": 20, "b": 30, "c": 40}
TOTAL = 100  # and 10 of the head
ENTROPIES = {"a": 3.0, "b": 1.0, "c": 2.0}


@pytest.mark.parametrize(
    ("share", "chosen"),
    [
        (0.10, []),  # the head alone is just as much
        (0.11, ["b"]),
        (0.40, ["b"]),
        (0.41, ["b", "c"]),
        (0.81, ["b", "c"]),  # some layer stays frozen
        (1.00, ["b", "c", "a"]),
    ],
)
def test_layers_of_lowest_entropy_are_added_until_the_share_is_reached(share, chosen):
    assert select("low_entropy", SIZES, TOTAL, share=share, entropies=ENTROPIES) == chosen


def test_all_and_head_do_not_look_at_the_share():
    for share in (0.01, 1.0):
        assert select("all", SIZES, TOTAL, share=share) == ["a", "b", "c"]
        assert select("head", SIZES, TOTAL, share=share) == []


def test_less_than_all_never_trains_all():
    """The last layer drawn may be the largest, without which the share is not reached."""
    entropies = {"a": 2.0, "b": 1.0, "c": 0.0}
    for mode in ("random", "low_entropy"):
        for share, count in ((0.999, 2), (1.0, 3)):
            assert len(select(mode, SIZES, TOTAL, share=share, entropies=entropies)) == count


def test_random_layers_depend_on_the_seed_alone_and_reach_the_share():
    numbers = np.random.default_rng(0).integers(1, 1000, 26).tolist()
    sizes = {f"layer {k}": size for k, size in enumerate(numbers)}
    head = 100
    total = sum(numbers) + head
    draws = [select("random", sizes, total, share=0.5, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 4
    for chosen in draws:
        trained = head + sum(sizes[layer] for layer in chosen)
        assert 0.5 * total <= trained < 0.5 * total + sizes[chosen[-1]]
        assert len(set(chosen)) == len(chosen)
    firsts = {select("random", SIZES, TOTAL, share=0.2, seed=seed)[0] for seed in range(20)}
    assert firsts == {"a", "b", "c"}  # each layer can be drawn
