"""The book of results: its experiments, what is kept of them, and the tables in the pages."""

import ast
import re

import numpy as np
import pytest

from benchmarks.evidence import book, figures, plan, record
from egmae_jax.core.files import write_json
from egmae_jax.core.numbers import format_mean_std
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
        for contrast in experiment.contrasts:
            compared = (*contrast.first, *contrast.second)  # or '<variant>, <branch or fusion>'
            assert {x.split(", ")[0] for x in compared} <= set(names)
            assert experiment.in_folds or len(compared) == 2
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


def test_files_of_evidence_name_their_commits_and_no_machine():
    for path in record.FOLDER.glob("*.json"):
        text = path.read_text()
        assert not re.search(r"/(?:root|home|tmp|work)/", text), path
        for commit in re.findall(r'"commit": "(.*)"', text):
            assert re.fullmatch("[0-9a-f]{40}(-dirty)?", commit)


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
    recorded = {
        "variants": rows,
        "tuned": True,
        "images": 150,
        "protocol": "grouped",
        "complete": False,
        "command": "egmae sweep ...",
    }
    monkeypatch.setattr(book, "load", lambda name: {"busi": recorded})
    table = book.tables("budget")
    assert "| no pre-training | .600 ± .000 |" in table
    assert "(30+0, 0.1)" in table
    assert "(60+0, 0.1)" not in table
    differences = [
        ours["test"]["auc"] - theirs["test"]["auc"]
        for ours, theirs in zip(rows[2]["rounds"], rows[1]["rounds"], strict=True)
    ]
    mean, std = np.mean(differences), np.std(differences, ddof=1)
    assert f"minus no pre-training | +{format_mean_std(mean, std)} |" in table
    assert book.over_folds(differences, 2) in table
    assert "not all variants have been run yet" in table


def test_a_contrast_compares_the_means_of_its_variants(monkeypatch):
    rng = np.random.default_rng(0)
    contrasts = plan.EXPERIMENTS["controls"].contrasts
    names = {x for contrast in contrasts for x in (*contrast.first, *contrast.second)}
    rows = [scores(rng, name) for name in sorted(names)]
    recorded = {"variants": rows, "tuned": False, "images": 150, "protocol": "grouped"}
    recorded |= {"complete": True, "command": "egmae sweep ..."}
    monkeypatch.setattr(book, "load", lambda name: dict.fromkeys(("busi", "covid"), recorded))
    auc = {row["name"]: [x["test"]["auc"] for x in row["rounds"]] for row in rows}
    scales = ("", "_0.18", "_0.05")
    first = np.mean([auc[f"entropy_noise{x}"] for x in scales], axis=0)
    second = np.mean([auc[f"uniform_noise{x}"] for x in scales], axis=0)
    (found,) = re.findall(
        r"entropy minus uniform, three scales \|.*\| (.*) \|", book.tables("controls")
    )
    assert found == book.over_folds([*(first - second), *(first - second)], len(contrasts))


def test_the_interval_over_folds_is_students():
    assert book.over_folds([0.1, 0.2, 0.3], 1) == "+.200 (\N{MINUS SIGN}.048 to +.448)"


def finish(name, sweep, out, folders):
    """Writes the results of some variants, and records them."""
    results = {
        "rounds": [{"seed": k} for k in range(3)],
        "dataset": {
            "counts": {"train": {"a": 3}, "test": {"b": 2}},
            "protocol": "grouped",
            "classes": ["a", "b"],
        },
        "made_with": {"commit": "0123456", "versions": {}, "command": "/root/secret"},
    }
    for folder in folders:
        write_json(out / folder / "results.json", results)
    record.write(name, "busi", sweep, out)


def test_of_a_stopped_sweep_the_complete_runs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path / "evidence")
    sweep = plan.read(plan.EXPERIMENTS["controls"], "busi", tmp_path, tmp_path)
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 60)
    complete = ("no_pretraining", "entropy_noise", "uniform_noise")
    parts = [[predictions(rng, labels, 1.0, part) for _ in range(3)] for part in ("v", "t")]
    scored = record.ScoredVariant("mae", None, *parts, 40.0)
    monkeypatch.setattr(record, "score", lambda name, path: {name: scored})
    finish("controls", sweep, tmp_path / "out", complete)
    kept = record.read("controls", "busi")
    assert {row["name"] for row in kept["variants"]} == set(complete)
    assert not kept["complete"]
    assert kept["images"] == 5
    assert "secret" not in str(kept)
    assert kept["command"].startswith("egmae sweep --config=configs/sweeps/corruption.py:busi,cpu")

    # Elsewhere, what is recorded need not run again.
    rest = record.remaining("controls", "busi", sweep)
    assert {x.name for x in rest.variants} == {x.name for x in sweep.variants} - set(complete)
    finish("controls", sweep, tmp_path / "elsewhere", [x.folder for x in rest.variants])
    whole = record.read("controls", "busi")
    assert [row["variant"] for row in whole["variants"]] == [x.name for x in sweep.variants]
    assert whole["complete"]
    assert not record.remaining("controls", "busi", sweep).variants


def test_rounds_that_share_images_are_compared_by_their_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path / "evidence")
    sweep = plan.read(plan.EXPERIMENTS["figure2"], "busi", tmp_path, tmp_path)
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 60)
    parts = [[predictions(rng, labels, 1.0, part) for _ in range(5)] for part in ("v", "t")]
    scored = record.ScoredVariant("mae", None, *parts, 40.0)
    monkeypatch.setattr(record, "score", lambda name, path: {name: scored})
    finish("figure2", sweep, tmp_path / "out", ("100_30",))
    assert not record.read("figure2", "busi")["differences"]
    # A comparison needs the predictions of both.
    assert record.remaining("figure2", "busi", sweep).variants == sweep.variants
    finish("figure2", sweep, tmp_path / "out", ("0_60",))
    (title,) = record.read("figure2", "busi")["differences"]
    assert title == "100/30 minus 0/60"
    rest = record.remaining("figure2", "busi", sweep)
    assert {x.name for x in sweep.variants} - {x.name for x in rest.variants} == {"100/30"}
