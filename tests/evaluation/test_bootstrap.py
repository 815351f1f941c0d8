"""The groups' weights against formulas of sampling, the intervals against a known truth."""

import itertools

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage
from egmae_jax.evaluation import bootstrap
from egmae_jax.evaluation.bootstrap import Evidence, Variance


def weights_of(labels, groups, resamples=4000):
    rng = np.random.default_rng(0)
    return bootstrap.bootstrap_weights(np.array(labels), np.array(groups), rng, resamples)


def test_a_group_is_drawn_as_a_whole():
    labels = np.repeat([0, 0, 1, 1, 0, 1, 0, 1], [1, 3, 2, 1, 2, 2, 1, 1])
    groups = np.repeat([7, 3, 9, 4, 0, 8, 5, 6], [1, 3, 2, 1, 2, 2, 1, 1])
    weights = weights_of(labels, groups)
    assert (weights > 0).all()
    by_group = {group: weights[:, groups == group] for group in groups}
    for columns in by_group.values():
        assert (columns == columns[:, :1]).all()
    np.testing.assert_allclose(sum(columns[:, 0] for columns in by_group.values()), 8)


def test_means_vary_as_those_of_samples_do():
    """s² / n of sampling theory, with s² of n - 1: of all groups, and of those of a class."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [40, 10])
    values = rng.normal(size=50) + 3 * labels
    weights = weights_of(labels, np.arange(50), 60_000)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.03)
    assert (weights @ values / 50).var() == pytest.approx(values.var(ddof=1) / 50, rel=0.03)
    for label, count in ((0, 40), (1, 10)):
        of_class, own = weights[:, labels == label], values[labels == label]
        means = of_class @ own / of_class.sum(axis=1)
        assert means.var() == pytest.approx(own.var(ddof=1) / count, rel=0.03)


def test_groups_of_several_classes_and_rare_classes_lose_none():
    """A class may be in one group alone, or only in groups that another class fills."""
    labels = np.array([0] * 20 + [1, 0, 0, 0, 1] + [2])
    groups = np.array([*range(20), 20, 20, 20, 21, 21, 22])
    weights = weights_of(labels, groups)
    for label in range(3):
        assert (weights[:, labels == label].sum(axis=1) > 0).all()
    for counts in itertools.product((1, 2, 3, 4), repeat=3):
        labels = np.repeat([0, 1, 2], counts)
        weights = weights_of(labels, np.arange(len(labels)), 50)
        assert (weights > 0).all()
        np.testing.assert_allclose(weights.sum(axis=1), len(labels))
    with pytest.raises(ValueError, match="at least three groups; there are 2"):
        weights_of([0, 1, 1], [0, 1, 1])


def test_groups_are_counted_in_all_and_by_class():
    labels, groups = np.array([0, 0, 0, 1, 1, 2]), np.array([5, 5, 6, 6, 7, 7])
    found = bootstrap.count_groups(labels, groups, 4)
    assert found == (3, (2, 2, 1, 0))
    sentence = bootstrap.few_groups_warning(found, "abcd")
    assert sentence.startswith("Few groups of test images: 3 (a 2, b 2, c 1, d 0). ")
    assert bootstrap.few_groups_warning(Evidence(30, (10, 20)), "ab") == ""


def test_a_macro_average_hangs_on_its_smallest_class():
    """Welch and Satterthwaite's degrees of freedom, of means of equal spread."""
    evidence = Evidence(100, (95, 5))
    variances = np.array([1 / 95, 1 / 5])
    welch = variances.sum() ** 2 / (variances**2 / np.array([94, 4])).sum()
    assert evidence.degrees_of_freedom("f1") == pytest.approx(welch)
    assert evidence.degrees_of_freedom("accuracy") == 99
    assert evidence.size("auc") == pytest.approx(4 / variances.sum())
    assert evidence.size("accuracy") == 100


def test_the_variance_of_a_recipe_is_that_of_crossed_random_effects():
    """Of metrics with the variances of rounds, cases and both known, as in reader studies."""
    rng, rounds, trials = np.random.default_rng(2), 4, 40_000
    of_rounds, of_cases, of_both = 0.5, 1.0, 0.25
    values = (
        rng.normal(0, of_cases**0.5, (trials, 1))
        + rng.normal(0, of_rounds**0.5, (trials, rounds))
        + rng.normal(0, of_both**0.5, (trials, rounds))
    )
    covariance = of_cases + of_both * np.eye(rounds)
    found = np.mean([bootstrap.variance_of_recipe(x, covariance).total for x in values[:4000]])
    assert found == pytest.approx(values.mean(axis=1).var(), rel=0.05)
    assert found == pytest.approx(of_cases + (of_rounds + of_both) / rounds, rel=0.05)
    assert bootstrap.variance_of_networks(covariance).total == pytest.approx(
        of_cases + of_both / rounds
    )
    assert bootstrap.variance_of_recipe(values[0, :1], covariance[:1, :1]) == Variance(1.25)


@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_the_critical_value_covers_whatever_the_share_of_the_rounds(rounds):
    """Normal cases of known variance, rounds of a variance that is estimated from few."""
    rng, trials = np.random.default_rng(rounds), 40_000
    shares = np.linspace(0, 1, 400)
    critical = [bootstrap._critical(Variance(1 - r, r, rounds), 1e6) for r in shares]
    for share in (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95):
        of_rounds = share * rng.chisquare(rounds - 1, trials) / (rounds - 1)
        total = of_rounds + 1 - share
        limit = np.interp(of_rounds / total, shares, critical) * total**0.5
        held = np.mean(np.abs(rng.normal(size=trials)) <= limit)
        assert 0.93 <= held <= 0.973, share
    alone = bootstrap._critical(Variance(0.0, 1.0, rounds), 50)
    assert alone == pytest.approx(stats.t.ppf(0.975, rounds - 1))
    assert bootstrap._critical(Variance(1.0), 50) == pytest.approx(stats.t.ppf(0.975, 50))


# --- Coverage -------------------------------------------------------------------------------------


def error(trials):
    """Three standard errors of a share near .95."""
    return 3 * (0.05 * 0.95 / trials) ** 0.5


def assert_covers(held, trials):
    for metric, share in held.items():
        assert 0.93 - error(trials) <= share <= 0.97 + error(trials), (metric, share)


def test_intervals_of_groups_of_three_cover_and_those_of_their_images_do_not():
    options = {"trials": 120, "resamples": 100}
    assert_covers(coverage.of_networks(coverage.Population(), 60, 3, **options), 120)
    images = coverage.of_networks(coverage.Population(), 60, 3, by_group=False, **options)
    assert all(share < 0.93 - error(120) for share in images.values()), images


@pytest.mark.slow
def test_intervals_of_networks_cover():
    held = coverage.of_networks(coverage.Population(), 60, 1, trials=1000, resamples=200)
    assert_covers(held, 1000)


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "size"), [(2, 3), (5, 1)])
def test_intervals_of_recipes_cover(rounds, size):
    population = coverage.Population()
    for found in coverage.of_recipes(population, 60, size, rounds, trials=500, resamples=200):
        assert_covers(found, 500)
