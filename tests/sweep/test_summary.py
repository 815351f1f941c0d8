"""What is said of a sweep: the choice on validation, differences on test, table and figure."""

import numpy as np
import pytest
import sklearn.metrics

from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.run.saved_run import RunError
from egmae_jax.sweep import display, summary, variants
from tests import tiny


def predictions(rng, labels, quality, part="test"):
    logits = rng.normal(size=(len(labels), 2)) + quality * np.eye(2)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ids = np.array([f"{part} {i}.png" for i in range(len(labels))])
    return Predictions(ids, labels, probabilities, np.arange(len(labels)))


@pytest.fixture
def scored(monkeypatch, tmp_path):
    """Makes a summary of variants by (quality on validation, on test), of three rounds each."""

    def make(qualities, *, fusion=None, moved="", tuned=False, **options):
        made, listed = {}, []
        for name, (on_validation, on_test) in qualities.items():
            rng, labels = np.random.default_rng(5), np.repeat([0, 1], 60)
            part = "other" if name == moved else "validation"
            validation = [predictions(rng, labels, on_validation, part) for _ in range(3)]
            test = [predictions(rng, labels, on_test) for _ in range(3)]
            made[name] = summary.ScoredVariant("mae", fusion, validation, test, 40.0)
            listed.append(variants.Variant(name, {}, tiny.make_config("images", "cache")))
            folder = tmp_path / listed[-1].folder
            folder.mkdir(exist_ok=True)
            (folder / "results.json").touch()
        by_folder = {x.folder: made[x.name] for x in listed}
        monkeypatch.setattr(summary, "score", lambda workdir: by_folder[workdir.name])
        baseline = variants.line(listed[0].name) if tuned else listed[0].name
        sweep = variants.Sweep(tuple(listed), baseline, tuned=tuned)
        return summary.summarize(sweep, tmp_path, {}, resamples=50, **options)

    return make


def test_the_best_on_test_is_not_chosen_and_its_test_figures_are_not_shown(scored, capsys):
    result = scored({"base": (0.5, 0.5), "lucky": (0.8, 4.0), "careful": (1.5, 1.0)})
    assert result["chosen"] == "careful"
    rows = {row["name"]: row for row in result["variants"]}
    assert {name for name, row in rows.items() if "test" in row} == {"base", "careful"}
    assert {name for name, row in rows.items() if "difference" in row} == {"careful"}
    aucs = {name: row["validation"]["auc"]["mean"] for name, row in rows.items()}
    assert aucs["base"] < aucs["lucky"] < aucs["careful"]
    display.show(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Chosen on validation: the highest mean validation AUC" in printed
    assert "Chosen on validation: careful" in printed
    assert "Validation results are too optimistic" in printed
    assert printed.count("lucky") == 1  # in the table of validation
    assert "images in 120 groups; the chosen variant and the baseline:" in printed
    assert "nothing may be chosen" not in printed


def test_all_variants_on_test_are_an_ablation_that_says_so(scored, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    longest = "entropy_noise_0.18"  # of configs/sweeps
    qualities = {"no_pretraining": (0.5, 0.5), "lucky": (0.8, 4.0), longest: (1.5, 1.0)}
    result = scored(qualities, all_on_test=True)
    assert result["chosen"] == longest
    assert all("test" in row for row in result["variants"])
    assert ["difference" in row for row in result["variants"]] == [False, True, True]
    display.show(result)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    in_tables = [line.split() for line in lines if line.startswith(f" {longest}")]
    ours, theirs = (result["variants"][k]["test"]["auc"]["mean"] for k in (2, 0))
    assert in_tables[1][-3] == f"{ours:.3f}".lstrip("0")
    assert in_tables[2][-3] == f"{ours - theirs:+.3f}".replace("0.", ".", 1)
    assert "for an ablation: nothing may be chosen from" in " ".join(printed.split())
    figure = display.draw(result)
    assert figure.get_suptitle() == f"Chosen on validation: {longest}"
    assert "nothing may be chosen" in figure.axes[4].get_xlabel()


def test_the_baseline_can_be_chosen_and_is_compared_with_nobody(scored):
    result = scored({"base": (2.0, 0.5), "other": (0.5, 2.0)})
    assert result["chosen"] == "base"
    assert [("test" in row, "difference" in row) for row in result["variants"]] == [
        *((True, False), (False, False)),
    ]
    assert len(display.draw(result).axes) == 6


def test_each_variant_is_compared_in_its_best_setting_on_validation(scored):
    qualities = {
        "scratch/60, 0.001": (1.0, 3.0),
        "scratch/60, 0.002": (1.5, 0.5),
        "mae/30+30, 0.001": (2.0, 1.0),
        "mae/30+30, 0.002": (0.5, 4.0),
    }
    for all_on_test in (False, True):
        result = scored(qualities, tuned=True, all_on_test=all_on_test)
        rows = {row["name"]: row for row in result["variants"]}
        tested = {name for name, row in rows.items() if "test" in row}
        assert tested == {"scratch/60, 0.002", "mae/30+30, 0.001"}
        assert [row["is_baseline"] for row in rows.values()] == [False, True, False, False]
        (difference,) = [row["difference"] for row in rows.values() if "difference" in row]
        ours, theirs = (rows[x]["test"]["auc"]["mean"] for x in sorted(tested))
        assert difference["auc"]["mean"] == pytest.approx(ours - theirs)
        assert "setting of each variant was chosen in the same way" in result["selection"]
    assert display.draw(result).axes


def test_intervals_of_several_comparisons_hold_together(scored):
    two = scored({"base": (0.5, 0.5), "a": (0.8, 1.0)}, all_on_test=True)
    four = scored({"base": (0.5, 0.5), **dict.fromkeys("abc", (0.8, 1.0))}, all_on_test=True)
    assert "Bonferroni" not in two["differences"]
    assert "The 3 intervals of a metric contain all true differences" in four["differences"]
    alone, together = (x["variants"][1]["difference"]["auc"] for x in (two, four))
    widths = [x["high"] - x["mean"] for x in (alone, together)]
    # Quantiles at .05 / 3 and .05: of a normal distribution, and of Student's t with two degrees.
    assert 2.394 / 1.96 < widths[1] / widths[0] < 7.649 / 4.303


def test_what_makes_validation_flatter_more_is_said(scored):
    qualities = {"base": (1.0, 1.0), "other": (1.0, 1.0)}
    plain = scored(qualities)["selection"]
    assert "fusion" not in plain
    assert "validation images of other" not in plain
    fitted = scored(qualities, fusion="stacked")["selection"]
    assert "even more to base, other, whose fusion was fitted on these images." in fitted
    assert "fusion" not in scored(qualities, fusion="mean")["selection"]
    moved = scored(qualities, moved="other")["selection"]
    assert "The validation images of other differ from those of base" in moved


def test_the_interval_of_two_rounds_knows_that_they_are_two():
    """Rounds that differ much and agree on the cases: nearly Student's t of one degree."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 2000)
    theirs = predictions(rng, labels, 0.5)
    ours = [predictions(rng, labels, quality) for quality in (0.7, 1.0)]
    result = summary.paired_difference(ours, [theirs, theirs], resamples=200)["auc"]
    gains = [
        sklearn.metrics.roc_auc_score(labels, p.probabilities[:, 1])
        - sklearn.metrics.roc_auc_score(labels, theirs.probabilities[:, 1])
        for p in ours
    ]
    spread = 12.706 * np.std(gains, ddof=1) / np.sqrt(2)
    assert result["mean"] == pytest.approx(np.mean(gains))
    assert result["high"] - result["mean"] == pytest.approx(spread, rel=0.05)


def test_equal_predictions_differ_by_nothing():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 100)
    ours = [predictions(rng, labels, 1.0) for _ in range(4)]
    alike = summary.paired_difference(ours, ours, resamples=100)
    assert all(row == {"mean": 0.0, "low": 0.0, "high": 0.0} for row in alike.values())


def test_other_images_or_rounds_are_not_compared():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 10)
    ours = predictions(rng, labels, 1.0)
    other = ours._replace(ids=ours.ids[::-1])
    assert summary.paired_difference([ours], [other], resamples=10) is None
    assert summary.paired_difference([ours], [ours, ours], resamples=10) is None


def test_the_summary_of_another_sweeps_folder_is_not_written(tmp_path):
    rows = [{"name": name, "status": "not complete"} for name in ("100/30", "100/45")]
    with pytest.raises(RunError, match=r"no complete run of this sweep .100/30, 100/45.: is it an"):
        summary.write({"variants": rows}, tmp_path)
    assert not any(tmp_path.iterdir())
