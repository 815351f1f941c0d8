"""Curves against scikit-learn's areas; figures take the page's colours, their names stay apart."""

import itertools
import re

import numpy as np
import pytest

from egmae_jax.evaluation.significance import Round
from egmae_jax.report import figures, svg


@pytest.fixture
def rounds():
    labels = np.arange(200) % 2
    p = np.random.default_rng(0).dirichlet((1, 1), 200) * 0.7 + 0.3 * np.eye(2)[labels]
    p = p.round(2)  # with ties
    return [Round(labels.astype(str), labels, [p] * 7, np.arange(200))]


@pytest.mark.parametrize("curve", [figures.roc, figures.precision_recall])
def test_the_area_under_a_curve_is_the_area_that_is_written(rounds, curve):
    truth, scores = rounds[0].labels == 1, rounds[0].probabilities[0][:, 1]
    steps, area = curve(truth, scores, (np.arange(100_000) + 0.5) / 100_000)
    assert steps.mean() == pytest.approx(area, abs=1e-4)
    if curve is figures.precision_recall:
        first = scores >= scores[truth].max()  # the fewest images with one of the class
        assert steps[0] == truth[first].mean()


def test_equal_curves_are_equal_bytes_and_take_the_pages_colours(rounds):
    first, second = (figures.class_curves(figures.ROC, rounds, ["mae"], 1, "x") for _ in range(2))
    assert first == second
    assert "var(--series-0)" in first
    assert not re.search(r"#0\d0\d0\d", first)


def test_many_curves_are_told_apart_by_colour_or_dash(rounds):
    styles = [tuple(svg.style(k).values()) for k in range(36)]
    assert len(set(styles)) == 36
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in itertools.pairwise(styles[:6]))
    names = [*(f"branch {k}" for k in range(6)), "ensemble"]  # configs/skin_asff.py:compare
    drawn = figures.class_curves(figures.ROC, rounds, names, 1, "x")
    curves = re.findall(r'<path d="[^"]{1000,}" [^>]*style="([^"]*)"', drawn)
    assert len(curves) == 7
    first, *_, last = curves
    assert all("var(--series-0)" in x for x in (first, last))
    assert "dasharray" not in first
    assert "dasharray" in last
