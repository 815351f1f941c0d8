"""Operating points in the report: the thresholds of validation, prevalence, decision curves."""

import numpy as np
import pytest
from sklearn import metrics as sk

from egmae_jax.commands.report import main
from egmae_jax.core.errors import ConfigError
from egmae_jax.evaluation.operating_points import Target
from egmae_jax.report import operating
from egmae_jax.report.content import Content
from tests.conftest import HTML_CLASSES
from tests.report.conftest import Page


@pytest.fixture(scope="module")
def run(html_run):
    return Content(html_run[0])


def test_rates_are_those_of_saved_predictions_at_thresholds_of_validation(run):
    """Of the ensemble, computed anew from the .npz files by scikit-learn."""
    k = run.classifiers.index("ensemble")
    for label in range(len(run.classes)):
        for point in run.operating_points[k][label]:
            rates = []
            for index in run.saved.rounds:
                validated, tested = (
                    run.saved.predictions(run.saved.branch("mae"), index, part)
                    for part in ("validation", "test")
                )
                p = run.probabilities(index, calibrated=True, part="validation")[k][:, label]
                alarms, hits, cuts = sk.roc_curve(
                    validated.labels == label, p, drop_intermediate=False
                )
                if point.target.rate == "specificity":
                    cut = cuts[1 - alarms >= point.target.level - 1e-9].min()
                else:
                    cut = cuts[hits >= point.target.level - 1e-9].max()
                assert point.thresholds[index] == cut
                called = run.probabilities(index, calibrated=True)[k][:, label] >= cut
                positive = tested.labels == label
                rates.append((called[positive].mean(), 1 - called[~positive].mean()))
            achieved = (point.sensitivity.mean, point.specificity.mean)
            assert achieved == pytest.approx(np.mean(rates, axis=0))


def test_every_classifier_has_a_table_with_predictive_values(run):
    first, *_ = run.classes
    tables = operating.tables(run, {first: 0.05})
    assert list(tables) == ["ensemble", "mae", "imagenet"]
    for blocks in tables.values():
        assert [block["name"] for block in blocks] == run.classes
        assert [len(block["rows"][0]["estimates"]) for block in blocks] == [6, 4, 4]
    block = tables["mae"][0]
    counts = run.tested_counts
    assert block["test"] == counts[first] / sum(counts.values())
    sensitivity, specificity, *_, ppv, _ = block["rows"][3]["estimates"]
    hits, alarms = 0.05 * sensitivity.mean, 0.95 * (1 - specificity.mean)
    assert ppv.mean == pytest.approx(hits / (hits + alarms))
    assert block["rows"][3]["target"] == Target("sensitivity", 0.9)


def test_the_page_states_the_prevalence(html_run, tmp_path, capsys):
    out, name = tmp_path / "r.html", HTML_CLASSES["malignant"]
    folder = f"--workdir={html_run[0]}"
    main([folder, "--data_dir=nowhere", f"--prevalence={name}=0.05", f"--out={out}"])
    page = Page(out.read_text())
    assert "in the test part, stated 0.05; groups of validation images" in page.text
    assert "PPV, stated" in page.strings
    assert page.text.count("specificity .99") == 9  # three classifiers, three classes
    assert "PPV, stated" not in Page((html_run[0] / "report.html").read_text()).text
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([folder, "--prevalence=0.05", f"--out={out}"])
    assert "give CLASS=SHARE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([folder, "--prevalence=0.05", f"--table={tmp_path / 't.csv'}"])
    assert "--prevalence is for the report of one run" in capsys.readouterr().err


def test_a_prevalence_is_of_known_classes_and_at_most_one_in_all():
    read = operating.read_prevalence
    assert read(["0.05"], ("benign", "malignant")) == {"malignant": 0.05, "benign": 0.95}
    assert read(["benign=0.9"], ("benign", "malignant")) == pytest.approx(
        {"benign": 0.9, "malignant": 0.1}
    )
    assert read(["a=b=.2"], ("a=b", "c", "d")) == {"a=b": 0.2}
    assert read([], ("a", "b")) == {}
    for wrong in ("a=1.5", "a=x", "a=0", "a=nan", "e=.1", ".1"):
        with pytest.raises(ConfigError, match=f"--prevalence={wrong}"):
            read([wrong], ("a", "b", "c"))
    with pytest.raises(ConfigError, match="more than 1"):
        read(["a=.6", "b=.6"], ("a", "b", "c"))


def test_thresholds_are_written_as_numbers_or_words():
    text = operating.threshold_text
    assert [text(x) for x in (0.98712, 1.0, np.inf, np.nan)] == [
        *(".98712", "1", "∞ (calls none)", "\N{EN DASH}"),
    ]
