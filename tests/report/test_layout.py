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
SCROLLING = """[...document.querySelectorAll('.scroll')].filter(
    x => x.scrollWidth > x.clientWidth).map(x => x.textContent.slice(0, 40))"""


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
    return template.render(
        matrices=matrices(count, largest), classes=names(count), title="matrices"
    )


def test_a_matrix_has_each_count_its_share_and_the_names_of_rows_and_columns():
    page = Page(page_of_matrices(5, 120))
    assert [x["aria-label"] for x in page.of("th") if "aria-label" in x] == names(5) * 3
    text = re.sub(r"\s+", " ", "|".join(page.strings))
    assert all(f"|{k} {name}|" in text for k, name in enumerate(names(5), start=1))
    table = matrices(5, 120)["imagenet"]
    cells = iter(page.of("td"))
    for row in table:
        for count, cell in zip(row, cells, strict=False):
            share = re.match(r"--share: (\S+)$", cell.get("style", "--share: 0"))[1]
            assert float(share) == pytest.approx(count / sum(row), abs=6e-4)
    for count in filter(None, table[0]):
        assert f"|{count}|{count / sum(table[0]):.2f}".replace("|0.", "|.") in text
    assert "|7|1|" in text


@pytest.mark.parametrize(("count", "scrolls"), [(4, ()), (8, ()), (20, (390,))])
def test_matrices_fit_the_page_and_scroll_on_a_phone(count, scrolls, views):
    for width, page in views(page_of_matrices(count)):
        assert page.evaluate(OVERFLOW) == [], width
        assert page.evaluate(FONT) >= (4 if width == A4 else 8)  # pixels
        assert bool(page.evaluate(SCROLLING)) is (width in scrolls), width


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
    for width, page in views(html):
        assert page.evaluate(inside) == [], width


def test_nothing_runs_over_the_edge_of_the_page(html_run, views, tmp_path):
    long = [tmp_path / f"a_run_of_quite_a_long_name_with_number_{k}" for k in range(2)]
    for path in long:
        shutil.copytree(html_run[0], path)
    results = json.loads((long[1] / "results.json").read_text())
    results["config"]["finetune"]["learning_rate"] = 0.125
    results["config"]["data"]["dir"] = "/a/long/folder" * 6
    (long[1] / "results.json").write_text(json.dumps(results))
    report.write_comparison(long, tmp_path / "comparison.html")
    for path in (html_run[0] / "report.html", tmp_path / "comparison.html"):
        for width, page in views(path.read_text()):
            assert page.evaluate(OVERFLOW) == [], width
            assert width == 390 or page.evaluate(SCROLLING) == []  # on a telephone tables scroll
