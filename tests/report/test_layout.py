"""Nothing of the page is cut off or runs over its edge: matrices, tables and figures, by width."""

import json
import re
import shutil

import numpy as np
import pytest

from egmae_jax import report
from egmae_jax.evaluation.significance import Round
from egmae_jax.report import figures, render
from tests.report.conftest import A4, OVERFLOW, Page

LONG = "dyed-lifted-polyps and resection margins"  # forty letters
NAMES = (LONG, "良性腫瘍と慢性炎症の所見", "polyp", f"x{'a' * 38}x", "z-line", "bbps 0-1")
FONT = """Math.min(...[...document.querySelectorAll('.confusion td')].map(
    x => parseFloat(getComputedStyle(x).fontSize)))"""
SHOWN = "[...document.querySelectorAll('{}')].some(x => getComputedStyle(x).display !== 'none')"


def names(count):
    return [f"{NAMES[k % len(NAMES)]}{k // len(NAMES) or ''}" for k in range(count)]


def matrices(count, largest):
    """Confusion matrices of three classifiers, [true][predicted]."""
    counts = np.random.default_rng(0).integers(0, largest + 1, (3, count, count))
    counts *= np.random.default_rng(1).random(counts.shape) < 0.5
    counts[:, 0, 0] = largest
    counts[0, 1] = 0
    counts[0, 1, 1] = 7  # all right
    return dict(zip(("imagenet", "mae", "ensemble"), counts.tolist(), strict=True))


def page_of_matrices(count, largest=9999):
    template = render.environment().from_string(
        '{% extends "base.html.j2" %}{% from "macros.html.j2" import confusion_matrices %}'
        "{% block body %}{{ confusion_matrices(matrices, classes) }}{% endblock %}"
    )
    shown = {"matrices": matrices(count, largest), "classes": names(count), "title": "matrices"}
    return template.render(shown)


def test_a_matrix_has_each_count_its_share_and_the_names_of_rows_and_columns():
    found = Page(page_of_matrices(5, 120))
    assert [x["aria-label"] for x in found.of("th") if "aria-label" in x] == names(5) * 3
    assert [x["title"] for x in found.of("th") if x["scope"] == "row"] == names(5) * 3
    table = matrices(5, 120)["imagenet"]
    text = re.sub(r"\s+", " ", "|".join(found.strings))
    cells = iter(found.of("td"))
    for row in table:
        for count, cell in zip(row, cells, strict=False):
            share = re.match(r"--share: (\S+)$", cell.get("style", "--share: 0"))[1]
            assert float(share) == pytest.approx(count / sum(row), abs=6e-4)
    for count in filter(None, table[0]):
        assert f"|{count}|{count / sum(table[0]):.2f}".replace("|0.", "|.") in text
    assert "|7|1|" in text


@pytest.mark.parametrize("count", [2, 5, 8, 20])
def test_matrices_are_as_wide_as_their_boxes(count, views):
    for width, shown in views(page_of_matrices(count)):
        assert shown.evaluate(OVERFLOW) == [], width
        assert shown.evaluate(FONT) >= (5.5 if width == A4 else 8)  # pixels; 5.5 are 4 points
        narrow = (width, count) == (390, 20)
        assert shown.evaluate(SHOWN.format(".count")) is not narrow
        assert shown.evaluate(SHOWN.format(".shares")) is narrow  # says that counts are left out
        named = shown.evaluate(SHOWN.format(".confusion th .name"))
        assert shown.evaluate(SHOWN.format(".names")) is not named
        assert shown.evaluate(SHOWN.format("td small"))


def test_sixty_classes_scroll_on_a_phone_alone(views):
    for width, shown in views(page_of_matrices(60, 10)):
        wider = "(x => x.scrollWidth > x.clientWidth)(document.querySelector('.matrix .scroll'))"
        assert shown.evaluate(wider) is (width == 390)
        size = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert shown.evaluate(size) == 0


def test_a_figures_title_stays_inside_it(views):
    labels = np.arange(30) % 2
    p = np.random.default_rng(0).dirichlet((1, 1), 30)
    rounds = [Round(labels.astype(str), labels, [p], labels)]
    drawn = [
        figures.class_curves(figures.ROC, rounds, ["a_classifier_of_a_long_name"], 1, name)
        for name in (*NAMES, "漢字" * 40, "PIGMENTED BENIGN KERATOSIS-LIKE LESIONS 7")
    ]
    inside = """[...document.querySelectorAll('svg text')].filter(text => {
      const a = text.getBoundingClientRect(), b = text.closest('svg').getBoundingClientRect();
      return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2;
    }).map(text => text.textContent)"""
    template = render.environment().from_string(
        '{% extends "base.html.j2" %}{% block body %}<div class="grid">{% for x in drawn %}'
        "<figure>{{ x }}</figure>{% endfor %}</div>{% endblock %}"
    )
    html = template.render(drawn=drawn, title="titles")
    assert "resection margins" in html
    for width, shown in views(html):
        assert shown.evaluate(inside) == [], width


def test_nothing_runs_over_the_edge_of_the_page(made, views, tmp_path):
    long = [tmp_path / f"a_run_of_quite_a_long_name_with_number_{k}" for k in range(2)]
    for path in long:
        shutil.copytree(made[0], path)
    results = json.loads((long[1] / "results.json").read_text())
    results["config"]["finetune"]["learning_rate"] = 0.125
    results["config"]["data"]["dir"] = "/a/long/folder" * 6
    (long[1] / "results.json").write_text(json.dumps(results))
    report.write_comparison(long, tmp_path / "comparison.html")
    scrolling = """[...document.querySelectorAll('.scroll')].filter(
        x => x.scrollWidth > x.clientWidth).map(x => x.textContent.slice(0, 40))"""
    for path in (made[0] / "report.html", tmp_path / "comparison.html"):
        for width, shown in views(path.read_text()):
            assert shown.evaluate(OVERFLOW) == [], width
            # On a telephone tables scroll, with a shadow at the edge that hides something.
            assert width == 390 or shown.evaluate(scrolling) == []
