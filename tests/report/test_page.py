"""The page of a run whose classes and files are called like HTML, and the comparison of several."""

import json
import shutil

import numpy as np
import pytest

from egmae_jax import report
from egmae_jax.commands.report import main
from egmae_jax.evaluation.metrics import TITLES
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.report import content, pictures, render
from egmae_jax.run.saved_run import RunError
from tests import tiny
from tests.conftest import HTML_CLASSES
from tests.report.conftest import Page


def copy(html_run, folder, change=None):
    """A copy of the run, with its results.json changed."""
    workdir = shutil.copytree(html_run[0], folder)
    results = json.loads((workdir / "results.json").read_text())
    if change is not None:
        change(results)
    (workdir / "results.json").write_text(json.dumps(results))
    return workdir


# --- The page of a run ----------------------------------------------------------------------------


def test_names_that_are_html_stay_names(html_run, read):
    raw = (html_run[0] / "report.html").read_text()
    for name in HTML_CLASSES.values():
        assert name in " ".join(read.strings)
        assert name not in raw
    assert not {"script", "i"} & {tag for tag, _ in read.tags}
    assert not [name for _, attributes in read.tags for name in attributes if name[:2] == "on"]
    assert str(40013 * 50021) not in " ".join(read.strings)
    assert any(HTML_CLASSES["malignant"] in x["aria-label"] for x in read.of("svg"))


def test_the_page_needs_no_network_and_forbids_it(read):
    for tag, attributes in read.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:image/webp;base64,")), tag
    policy = read.of("meta")[2]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert "default-src 'none'" in policy["content"]


def test_links_lead_somewhere_ids_are_unique_and_pictures_are_described(read):
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for attributes in read.of("a") + read.of("use"):
        assert (attributes.get("href") or attributes["xlink:href"])[1:] in ids
    # ROC, precision-recall and decision curves of three classes, reliability of three classifiers,
    # losses and scores of three stages; pre-training has no scores. One map of the test images.
    assert len(read.of("svg")) == 3 * 3 + 3 + 5 + 1
    assert all(x["role"] == "img" and len(x["aria-label"]) > 30 for x in read.of("svg"))
    assert len(read.of("img")) >= 5
    assert all(len(x["alt"]) > 10 for x in read.of("img"))


def test_the_page_has_the_figures_of_results_json(html_run, read):
    results = json.loads((html_run[0] / "results.json").read_text())
    for metrics in results["summary"].values():
        for name in TITLES:
            mean, std = (render.number(metrics[name][key]) for key in ("mean", "std"))
            assert f"{mean} ± {std}" in read.text
    assert "imagenet started from random weights instead of ImageNet's" in read.text
    assert results["made_with"]["versions"]["jax"] in read.text
    assert "Pre-training saw test images no" in " ".join(" ".join(read.strings).split())
    assert "near_duplicate_threshold" in read.text  # of the config
    sizes = [row["parameters"] for row in results["rounds"][0]["trainable"].values()]
    for size in (*sizes, sum(sizes)):
        assert f"{size / 1e6:.2f} M parameters" in read.text
    audit = json.loads((html_run[0] / "audit.json").read_text())
    assert f"{audit['near_duplicates']['pairs']} pairs in" in read.text
    # Of 32 pixels the last block has one cell.
    grid = "no finer than 8 x 8 cells on 32 x 32 pixels (layer stages_0/blocks_0, 8 x 8 grid)"
    assert grid in read.text


def test_a_page_without_images_says_so_and_names_temperatures_at_their_limit(
    html_run, tmp_path, capsys
):
    def change(results):
        for row in results["rounds"]:
            row["calibration"]["mae"] |= {"temperature": 99.9, "limit": "hottest"}

    workdir, out = copy(html_run, tmp_path / "run", change), tmp_path / "r.html"
    main([f"--workdir={workdir}", "--data_dir=nowhere", f"--out={out}"])
    assert f"Written to {out}" in capsys.readouterr().out
    page = Page(out.read_text())
    assert not page.of("img")
    assert "There is no folder nowhere" in page.text
    assert "mae: No temperature was hot enough; 100 is the highest" in page.text


def test_a_folder_without_the_images_of_the_run_is_named(html_run, tmp_path):
    workdir, out = copy(html_run, tmp_path / "run"), tmp_path / "r.html"
    other = tiny.make_data(tmp_path / "phantoms")
    for name, label in HTML_CLASSES.items():
        (other / name).rename(other / label)
    main([f"--workdir={workdir}", f"--data_dir={other}", f"--out={out}"])
    page = Page(out.read_text())
    assert not page.of("img")
    assert f"{other} has none of the run's validation images; --data_dir sets" in page.text


@pytest.mark.parametrize("more", ["--workdir=other", "--table=t.csv"])
def test_a_folder_of_images_is_refused_where_none_are_shown(more, capsys):
    with pytest.raises(SystemExit):
        main(["--workdir=run", "--data_dir=images", more])
    assert "--data_dir is for the report of one run" in capsys.readouterr().err


def test_a_run_that_is_not_evaluated_ends_in_a_sentence(html_run, tmp_path, capsys):
    workdir = copy(html_run, tmp_path / "run")
    (workdir / "results.json").unlink()
    with pytest.raises(SystemExit):
        main([f"--workdir={workdir}"])
    assert "has not been evaluated" in capsys.readouterr().err


# --- The comparison -------------------------------------------------------------------------------


def test_runs_are_compared(html_run, tmp_path):
    def change(results):
        results["config"]["pretrain"]["learning_rate"] = 0.125

    other = copy(html_run, tmp_path / "other", change)
    elsewhere = copy(html_run, tmp_path / "elsewhere")
    for path in (elsewhere / "predictions").glob("*_test.npz"):
        with np.load(path) as arrays:
            saved = dict(arrays)
        saved["ids"] = np.array([f"x{i}" for i in saved["ids"]])
        np.savez(path, **saved)
    out = tmp_path / "c.html"
    folders = [f"--workdir={x}" for x in (html_run[0], other, elsewhere)]
    main([*folders, f"--out={out}"])
    text = " ".join(" ".join(Page(out.read_text()).strings).split())
    assert "pretrain.learning_rate" in text
    assert "0.125" in text
    assert "finetune.learning_rate" not in text
    assert "other images than run, so not paired with it: elsewhere" in text
    assert "run other .000 .000 to .000" in text
    with pytest.raises(RunError, match="given twice"):
        report.write_comparison([other, other], out)


# --- What the pages are made of -------------------------------------------------------------------


def test_cases_are_the_most_and_least_confident_and_none_is_shown_twice():
    p = np.array([0.99, 0.9, 0.8, 0.7, 0.6, 0.95, 0.55])
    predictions = Predictions(
        np.array(list("abcdefg")),
        np.array([0, 0, 0, 0, 0, 1, 1]),
        np.stack([p, 1 - p], axis=1),
        np.arange(7),
    )
    assert pictures.choose_cases(predictions, 2) == {
        "right and most confident": [0, 1],
        "right and least confident": [4, 3],
        "wrong and most confident": [5],
        "wrong and least confident": [6],
    }
    wrong = pictures.choose_cases(predictions._replace(labels=np.ones(7, int)), 9)
    assert wrong["right and most confident"] == wrong["right and least confident"] == []


def test_numbers_are_written_as_the_field_does():
    assert [render.number(x) for x in (0.9144, 1.0, 0.9999, -0.02, None, 0.0)] == [
        *(".914", "1.000", "1.000", "\u2212.020", "", ".000"),
    ]
    assert render.p_value(0.0004) == "< .001"
    assert render.p_value(0.0312) == ".031"


def test_multiply_adds_are_those_that_timm_publishes():
    multiply_adds = content.count_multiply_adds("convnext_tiny", 1000, 224)
    assert multiply_adds == pytest.approx(4.47e9, rel=0.01)
