"""The page of a sweep: tables of its variants, and scores over its axis."""

import numpy as np
import pytest

from egmae_jax.sweep import display, page, summary, variants
from tests import tiny
from tests.report.conftest import Page
from tests.sweep.test_summary import predictions

AXIS = "finetune.label_share"
LABELLED = {1.0: 40, 0.5: 20, 0.1: 4}


@pytest.fixture
def shares(monkeypatch, tmp_path):
    """Makes the summary of a sweep over shares, by quality of each line at all labels."""

    def make(qualities, *, missing=(), **options):
        made, listed = {}, []
        for line, quality in qualities.items():
            for share, count in LABELLED.items():
                name, rng, labels = f"{line}/{share:g}", np.random.default_rng(5), [0, 1] * 60
                each = [
                    predictions(rng, np.array(labels), quality * share**0.3, part)
                    for part in ("validation", "test")
                    for _ in range(2)
                ]
                listed.append(variants.Variant(name, {AXIS: share}, tiny.make_config("x", "y")))
                made[listed[-1].folder] = summary.ScoredVariant(
                    "mae", None, each[:2], each[2:], count
                )
                (tmp_path / listed[-1].folder).mkdir()
                if name not in missing:
                    (tmp_path / listed[-1].folder / "results.json").touch()
        monkeypatch.setattr(summary, "score", lambda workdir: made[workdir.name])
        sweep = variants.Sweep(tuple(listed), next(iter(qualities)), AXIS)
        return summary.summarize(sweep, tmp_path, {}, resamples=50, **options)

    return make


def test_each_variant_is_compared_with_the_baseline_at_the_same_value(shares, capsys):
    result = shares({"scratch": 0.5, "mae": 1.5}, all_on_test=True)
    rows = {row["name"]: row for row in result["variants"]}
    for share in LABELLED:
        one, other = rows[f"mae/{share:g}"], rows[f"scratch/{share:g}"]
        gain = one["test"]["auc"]["mean"] - other["test"]["auc"]["mean"]
        assert one["difference"]["auc"]["mean"] == pytest.approx(gain)
        assert (one["is_baseline"], other["is_baseline"]) == (False, True)
        assert "difference" not in other
    display.show(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"difference to scratch at the same {AXIS} (95 % interval)" in printed


def test_without_all_on_test_only_the_chosen_variant_and_its_baseline_are_tested(shares):
    result = shares({"scratch": 0.5, "mae": 1.5})
    tested = [row["name"] for row in result["variants"] if "test" in row]
    assert result["chosen"] == "mae/1"
    assert tested == ["scratch/1", "mae/1"]


def test_the_page_draws_a_line_for_each_recipe_and_names_what_is_missing(shares, tmp_path):
    result = shares({"scratch": 0.5, "mae": 1.5}, missing=["mae/0.5"], all_on_test=True)
    (tmp_path / "mae_0.1" / "report.html").touch()
    read = Page(page.render(result, tmp_path))
    assert len(read.of("svg")) == 2 * len(display.COLUMNS)
    rows = {row["name"]: row for row in result["variants"]}
    for part, metric in (("validation", "auc"), ("test", "accuracy")):
        (label,) = [
            svg["aria-label"]
            for svg in read.of("svg")
            if svg["aria-label"].startswith(f"{metric} on {part} images over {AXIS}: ")
        ]
        for name, row in rows.items():
            line, _, share = name.partition("/")
            if part in row:
                value = display.number(row[part][metric]["mean"])
                assert f"{value} at {share}" in label.split(f"{line} ")[1]
    assert "mae/0.5: not complete" in read.text
    assert {link["href"] for link in read.of("a")} == {"mae_0.1/report.html"}
    assert f"Differences are to scratch at the same {AXIS}." in read.text


def test_a_sweep_without_an_axis_has_tables_only(shares, tmp_path):
    result = shares({"scratch": 0.5, "mae": 1.5})
    read = Page(page.render({**result, "axis": ""}, tmp_path))
    assert not read.of("svg")
    assert len(read.of("table")) == 2
