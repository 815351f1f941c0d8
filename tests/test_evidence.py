"""The book of results: its experiments, what is kept of them, and the tables in the pages."""

import ast
import re

import numpy as np
import pytest

from benchmarks.evidence import audits, book, figures, plan, record
from egmae_jax.core.files import read_json, write_json
from egmae_jax.run import rules
from egmae_jax.sweep import variants
from tests import REPOSITORY
from tests.sweep.test_summary import predictions


@pytest.mark.parametrize("name", plan.EXPERIMENTS)
def test_experiments_are_sweeps_that_hold_what_is_compared(name, tmp_path):
    experiment = plan.EXPERIMENTS[name]
    for dataset in experiment.datasets:
        sweep = plan.read(experiment, dataset, tmp_path, tmp_path)
        names = [variants.line(x.name) if sweep.tuned else x.name for x in sweep.variants]
        for pair in experiment.contrasts:  # of several branches, '<variant>, <branch or fusion>'
            assert {x.split(", ")[0] for x in pair} <= set(names)
        for variant in sweep.variants:
            rules.check(variant.config, 1)
            assert variant.config.rounds.count >= 3


@pytest.mark.parametrize("page", book.PAGES, ids=lambda path: path.name)
def test_every_table_is_what_its_files_give(page):
    text = page.read_text()
    assert book.fill(text) == text
    assert re.findall(r"<!-- evidence: (\w+) -->", text)


def test_the_scores_in_the_readme_are_those_of_the_tables():
    results = (REPOSITORY / "README.md").read_text().partition("## Results")[2]
    scores = re.findall(r"\.\d{3} ± \.\d{3}|[+\N{MINUS SIGN}]\.\d{3} \([^)]*\)", results)
    tables = "".join(book.tables(name) for name in plan.EXPERIMENTS)
    assert len(scores) > 8
    for score in scores:
        assert " ".join(score.split()) in tables


def test_the_demo_is_expected_to_give_what_it_gave():
    described = ast.get_docstring(ast.parse((REPOSITORY / "configs/demo.py").read_text()))
    for score in re.findall(r"(?<=\s)\.\d{3}", described):
        assert score in book.tables("demo")


def test_every_figure_of_a_page_is_there():
    for page in book.PAGES:
        for file in re.findall(r"\(evidence/(\w+\.svg)\)", page.read_text()):
            assert (record.FOLDER / file).exists()


def test_a_figure_is_the_same_for_the_same_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    rng = np.random.default_rng(0)
    names = {
        "controls": ("scratch", "mae"),
        "labels": ("scratch/1", "mae/1", "scratch/0.05"),
        "figure2": ("0/60", "100/30", "1000/15"),
    }
    for name, variants_of in names.items():
        rows = {x: {v: scores(rng, v) for v in variants_of} for x in ("busi", "covid")}
        path = tmp_path / figures.draw(name, rows, {"scratch": "no pre-training"})
        text = path.read_text()
        assert "no pre-training" in text
        assert ("published" in text) == (name == "figure2")
        figures.draw(name, rows, {"scratch": "no pre-training"})
        assert path.read_text() == text


def test_files_of_evidence_name_no_machine():
    for path in record.FOLDER.glob("*.json"):
        assert not re.search(r"/(?:root|home|tmp|work)/", path.read_text()), path
        if path != audits.FILE:
            kept = read_json(path)
            commits = [row["commit"] for row in kept.get("variants", [kept.get("made_with")])]
            assert all(len(commit) >= 7 for commit in commits)


def scores(rng, name, gain=0.0):
    rounds = [
        {
            "fold": k,
            "validation": {"auc": 0.8 + gain},
            "test": {"accuracy": 0.6, "auc": 0.7 + gain + 0.01 * rng.normal()},
            "test_groups": 50,
        }
        for k in range(3)
    ]
    return {"name": name, "changes": {}, "rounds": rounds}


def test_tables_show_the_best_setting_of_each_variant_and_its_difference(monkeypatch):
    rng = np.random.default_rng(0)
    rows = [scores(rng, "scratch/60+0, 0.1"), scores(rng, "scratch/30+0, 0.1", 0.05)]
    rows += [scores(rng, "entropy_noise/30+30, 0.1", 0.1)]
    first, second = rows[2]["name"], rows[1]["name"]
    found = {"auc": {"mean": 0.05, "low": -0.01, "high": 0.11}}
    recorded = {
        "variants": rows,
        "tuned": True,
        "images": 150,
        "protocol": "grouped",
        "complete": False,
        "command": "egmae sweep ...",
        "contrasts": [{"first": first, "second": second, "difference": found}],
    }
    monkeypatch.setattr(book, "load", lambda name: {"busi": recorded})
    table = book.tables("budget")
    assert "| no pre-training | .600 ± .000 |" in table
    assert "(30+0, 0.1)" in table
    assert "(60+0, 0.1)" not in table
    assert "+.050 (\N{MINUS SIGN}.010 to +.110)" in table
    assert "not all variants have been run yet" in table


def test_the_interval_over_folds_is_students():
    assert book.over_folds([0.1, 0.2, 0.3], 1) == "+.200 (\N{MINUS SIGN}.048 to +.448)"
    assert book.over_folds([0.1], 1) == ""


def test_of_a_stopped_sweep_the_complete_runs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path / "evidence")
    sweep = plan.read(plan.EXPERIMENTS["controls"], "busi", tmp_path, tmp_path)
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 60)
    complete = ("no_pretraining", "entropy_noise", "uniform_noise")
    results = {
        "rounds": [{"seed": k} for k in range(3)],
        "dataset": {
            "counts": {"train": {"a": 3}, "test": {"b": 2}},
            "protocol": "grouped",
            "classes": ["a", "b"],
        },
        "made_with": {"commit": "0123456", "versions": {}, "command": "/root/secret"},
    }

    def finish(out, names):
        for name in names:
            write_json(out / name / "results.json", results)
        record.write("controls", "busi", sweep, out)

    parts = [[predictions(rng, labels, 1.0, part) for _ in range(3)] for part in ("v", "t")]
    scored = record.ScoredVariant("mae", None, *parts, 40.0)
    monkeypatch.setattr(record, "score", lambda name, path: {name: scored})
    finish(tmp_path / "out", complete)
    kept = record.read("controls", "busi")
    assert {row["name"] for row in kept["variants"]} == set(complete)
    assert not kept["complete"]
    assert kept["images"] == 5
    (contrast,) = kept["contrasts"]
    assert (contrast["first"], contrast["second"]) == ("entropy_noise", "uniform_noise")
    assert "secret" not in str(kept)
    assert kept["command"].startswith("egmae sweep --config=configs/sweeps/corruption.py:busi,cpu")

    # Elsewhere, what is recorded need not run again, but for the predictions that others need.
    rest = record.remaining("controls", "busi", sweep)
    assert "no_pretraining" not in [x.name for x in rest.variants]
    assert "uniform_noise" not in [x.name for x in rest.variants]
    assert {"entropy_noise", "shuffled_entropy"} < {x.name for x in rest.variants}
    finish(tmp_path / "elsewhere", [x.folder for x in rest.variants])
    whole = record.read("controls", "busi")
    assert [row["variant"] for row in whole["variants"]] == [x.name for x in sweep.variants]
    assert whole["complete"]
    assert len(whole["contrasts"]) == whole["comparisons"]
    assert contrast in whole["contrasts"]
    assert not record.remaining("controls", "busi", sweep).variants
