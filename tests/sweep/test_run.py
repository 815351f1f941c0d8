"""Sweeps as users run them: each variant an ordinary run, equal pre-training run once."""

import csv
import gc
import json
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import sklearn.metrics

from egmae_jax import experiment
from egmae_jax.core.errors import ConfigError
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.models.weights import MissingWeightsError
from egmae_jax.run.rounds import RoundData
from egmae_jax.sweep import run, variants
from egmae_jax.training import loop
from tests import REPOSITORY, tiny

# 'longer' pre-trains as 'short' does, and 'diverging' cannot be trained.
CHANGES = {
    "short": {"finetune.epochs": 3},
    "longer/4": {"finetune.epochs": 4},
    "diverging": {"finetune.epochs": 3, "finetune.learning_rate": 1e30},
    "none": {"branches": ("imagenet",), "imagenet.weights": "none"},
}
FILE = """
from pathlib import Path
from egmae_jax.sweep import variants
from tests import tiny

def get_config(words=None):
    config = tiny.make_config(Path({data!r}), Path({cache!r}), branches=("mae",))
    return variants.attach(config, {changes!r}, baseline="none")
"""


def start(file, out, *flags):
    return subprocess.Popen(
        [sys.executable, "-m", "egmae_jax.sweep", f"--config={file}", f"--out={out}", *flags],
        env=tiny.environment(COLUMNS="80"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make_sweep(data, cache, changes=CHANGES):
    config = tiny.make_config(data, cache, branches=("mae",))
    return variants.read(variants.attach(config, changes, baseline="none"))


@pytest.fixture(scope="module")
def sweep(data, cache):
    return make_sweep(data, cache)


@pytest.fixture(scope="module")
def file(data, cache, tmp_path_factory):
    """A sweep's config file."""
    path = tmp_path_factory.mktemp("config") / "sweep.py"
    path.write_text(FILE.format(data=str(data), cache=str(cache), changes=CHANGES))
    return path


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    """The folder of a sweep that was run by the command, what it printed and its exit status."""
    out = tmp_path_factory.mktemp("sweep")
    process = start(file, out)
    printed, _ = process.communicate(timeout=300)
    return out, printed, process.returncode


@pytest.mark.slow
def test_a_variant_that_fails_is_named_and_the_others_go_on(finished):
    out, printed, status = finished
    assert status == 1, printed
    assert "Traceback" not in printed
    rows = json.loads((out / "summary.json").read_text())["variants"]
    assert [(row["name"], row["status"]) for row in rows] == [
        ("short", "complete"),
        ("longer/4", "complete"),
        ("diverging", "failed"),
        ("none", "complete"),
    ]
    assert "not finite" in rows[2]["error"]
    assert "diverging: failed (" in printed
    table = printed[printed.index("Validation, mean") :]
    assert max(len(x) for x in table.splitlines()[:30] if not x.startswith("diverging")) <= 80


@pytest.mark.slow
def test_the_summary_is_of_the_predictions(finished):
    out, printed, _ = finished
    content = json.loads((out / "summary.json").read_text())
    with (out / "summary.csv").open() as lines:
        table = {row["variant"]: row for row in csv.DictReader(lines)}
    rows = {row["name"]: row for row in content["variants"]}
    assert list(rows) == list(table) == list(CHANGES)
    aucs, accuracies = {}, {}
    for name, branch in (("short", "mae"), ("longer/4", "mae"), ("none", "imagenet")):
        validation, test = (
            [
                load_predictions(
                    out / rows[name]["workdir"] / f"predictions/round_{i}_{branch}_{part}.npz"
                )
                for i in (0, 1)
            ]
            for part in ("validation", "test")
        )
        scores = [
            sklearn.metrics.roc_auc_score(np.eye(3)[p.labels], p.probabilities) for p in validation
        ]
        aucs[name] = np.mean(scores)
        accuracies[name] = [np.mean(p.probabilities.argmax(axis=1) == p.labels) for p in test]
        assert rows[name]["validation"]["auc"]["mean"] == pytest.approx(aucs[name])
        assert float(table[name]["validation_auc"]) == pytest.approx(aucs[name])
    chosen = max(aucs, key=aucs.get)
    assert content["chosen"] == chosen
    assert f"Chosen on validation: {chosen}" in printed
    assert {name for name, row in rows.items() if "test" in row} == {chosen, "none"}
    assert {name for name, row in table.items() if row["test_accuracy"]} == {chosen, "none"}
    for name in (chosen, "none"):
        accuracy = rows[name]["test"]["accuracy"]
        assert accuracy["rounds"] == pytest.approx(accuracies[name])
        assert accuracy["std"] == pytest.approx(np.std(accuracies[name], ddof=1))
        assert f"{np.mean(accuracies[name]):.3f}".lstrip("0") in printed
    if chosen != "none":
        gain = np.mean(accuracies[chosen]) - np.mean(accuracies["none"])
        assert rows[chosen]["difference"]["accuracy"]["mean"] == pytest.approx(gain)
    assert "difference" not in rows["none"]
    assert table["diverging"]["validation_auc"] == table["none"]["test_f1_difference"] == ""
    with PIL.Image.open(out / "summary.png") as image:
        assert image.width > 600
    page = (out / "summary.html").read_text()
    assert "diverging: failed (" in page
    assert f"{rows['longer/4']['validation']['auc']['mean']:.3f}".lstrip("0") in page


@pytest.mark.slow
def test_equal_pretraining_is_shared_to_the_same_bits(finished, sweep, tmp_path):
    out, printed, _ = finished
    assert "longer/4: uses the pre-trained autoencoder of short" in printed
    rows = {row["name"]: row for row in json.loads((out / "summary.json").read_text())["variants"]}
    assert rows["longer/4"]["pretraining_from"] == "../short"
    assert rows["short"]["pretraining_from"] is None
    experiment.run(sweep.variants[1].config, tmp_path)
    tiny.assert_same(tiny.outcome(tmp_path), tiny.outcome(out / "longer_4"))
    stages = [
        [json.loads(line)["stage"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path, out / "longer_4")
    ]
    assert stages[0] == stages[1]  # with the lines of pre-training


@pytest.mark.slow
def test_what_is_complete_is_not_run_again(finished, sweep, monkeypatch):
    out = finished[0]
    ran = []
    monkeypatch.setattr(experiment, "run", lambda config, workdir: ran.append(workdir.name))
    run.check(sweep, out)
    assert run.run(sweep, out) == {}
    assert ran == ["diverging"]


@pytest.mark.slow
def test_a_run_leaves_no_images_in_memory(sweep, tmp_path):
    """Eight variants of a streamed set would else keep eight times data.host_gigabytes."""

    def kept():
        gc.collect()
        return sum(type(x) is RoundData for x in gc.get_objects())

    before = kept()  # of other tests
    run.run(sweep._replace(variants=sweep.variants[3:]), tmp_path)
    assert kept() == before


@pytest.mark.essential
@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_to_the_same_bits(finished, file, tmp_path):
    process = start(file, tmp_path)
    log = tmp_path / "longer_4" / "metrics.jsonl"
    while not (log.exists() and "finetune" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "the same command resumes" in printed
    assert not (tmp_path / "none").exists()
    process = start(file, tmp_path)
    process.communicate(timeout=300)
    for folder in ("short", "longer_4", "none"):
        tiny.assert_same(tiny.outcome(tmp_path / folder), tiny.outcome(finished[0] / folder))


@pytest.mark.slow
def test_a_folder_of_another_sweep_is_refused(finished, data, cache):
    other = make_sweep(data, cache, {**CHANGES, "short": {"finetune.epochs": 5}})
    with pytest.raises(ConfigError, match=r"finetune\.epochs: 3 in the workdir, 5 now"):
        run.check(other, finished[0])


def test_weights_that_are_missing_are_found_before_the_first_variant(data, cache, tmp_path):
    missing = {"branches": ("imagenet",), "imagenet.weights": str(tmp_path / "no.safetensors")}
    other = make_sweep(data, cache, {**CHANGES, "missing": missing})
    run.check(other, tmp_path)
    with pytest.raises(MissingWeightsError, match=r"no\.safetensors.* branch 'imagenet' needs"):
        run.run(other, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_summary_of_what_there_is_runs_nothing(file, tmp_path, finished):
    out = tmp_path / "out"
    out.mkdir()
    (out / "none").symlink_to(finished[0] / "none")
    (out / "short").mkdir()
    (out / "short" / "results.json").write_text("{")
    process = start(file, out, "--summary_only")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "longer/4: not complete" in printed
    assert "short: failed" in printed
    rows = json.loads((out / "summary.json").read_text())["variants"]
    assert [r["status"] for r in rows] == ["failed", "not complete", "not complete", "complete"]


# --- Without training -----------------------------------------------------------------------------


def test_all_variants_are_checked_before_any_is_run(data, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda **_: pytest.fail("trained"))
    bad = make_sweep(data, cache, {"none": {}, "bad": {"finetune.epochs": 0}})
    with pytest.raises(ConfigError, match=r"In the variant 'bad': [\s\S]*finetune.epochs is 0"):
        run.check(bad, tmp_path)


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"finetune.epochs": 4, "evaluation.resize": 40}, True),
        ({"pretrain.epochs": 4}, False),
        ({"corruption.kind": "random_mask"}, False),
        ({"seed": 7}, False),
        ({"branches": ("imagenet",)}, False),
    ],
)
def test_only_what_pretraining_does_not_depend_on_is_shared(data, cache, tmp_path, changes, shared):
    sweep = make_sweep(data, cache, {"none": {"finetune.epochs": 3}, "other": changes})
    first, second = sweep.variants
    folder = tmp_path / first.folder
    files = ("pretrain/autoencoder.safetensors", "pretrain/report.json", "splits.json")
    files += ("intensity_range.json", "tensorboard/pretrain/round_0/reconstructions_1.png")
    for name in (*files, "results.json", "export/round_0_mae.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    lines = [
        json.dumps({"stage": stage, "round": 0, "step": 1}) + "\n"
        for stage in ("pretrain", "finetune/mae")
    ]
    (folder / "metrics.jsonl").write_text("".join(lines))
    run.copy_pretraining(second, sweep.variants, tmp_path)
    assert run.pretraining_source(second, tmp_path) == ("../none" if shared else None)
    assert (tmp_path / "other").exists() == shared
    if shared:
        taken = {p.relative_to(tmp_path / "other"): p for p in (tmp_path / "other").rglob("*.*")}
        own = {"metrics.jsonl", "config.json", "pretrain/taken_from.json"}
        assert {str(name) for name in taken} == {*files, *own}
        assert (tmp_path / "other" / "metrics.jsonl").read_text() == lines[0]
        run.check(sweep._replace(variants=(second,)), tmp_path)  # it can be gone on with
