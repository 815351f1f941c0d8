"""Sweeps: each variant an ordinary run, what they share, what is said of them."""

import csv
import gc
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
import sklearn.metrics

from configs.sweeps import corruption as corruption_sweep
from configs.sweeps import epochs as epochs_sweep
from egmae_jax import experiment
from egmae_jax.data.samples import IntensityRange
from egmae_jax.evaluation.predictions import Predictions, load_predictions
from egmae_jax.models.init import initial_variables
from egmae_jax.run import branches, rules
from egmae_jax.run import config as configs
from egmae_jax.run.config import ConfigError
from egmae_jax.run.rounds import RoundData
from egmae_jax.run.saved_run import RunError
from egmae_jax.run.workdir import Paths, record_intensity_range
from egmae_jax.sweep import run, sharing, summary, variants
from egmae_jax.training import loop
from tests import tiny

REPOSITORY = Path(__file__).parents[2]
# Of which 'longer' pre-trains as 'short' does, and 'diverging' cannot be trained.
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
    found = json.loads((out / "summary.json").read_text())["variants"]
    assert [(row["name"], row["status"]) for row in found] == [
        ("short", "complete"),
        ("longer/4", "complete"),
        ("diverging", "failed"),
        ("none", "complete"),
    ]
    assert "not finite" in found[2]["error"]
    assert "diverging: failed (" in printed
    table = printed[printed.index("Validation, mean") :]
    shown = [line for line in table.splitlines() if not line.startswith(("diverging", "Error"))]
    assert max(map(len, shown[:30])) <= 80


@pytest.mark.slow
def test_the_summary_is_of_the_predictions(finished):
    out, printed, _ = finished
    summary_ = json.loads((out / "summary.json").read_text())
    found = {row["name"]: row for row in summary_["variants"]}
    aucs, accuracies = {}, {}
    for name, branch in (("short", "mae"), ("longer/4", "mae"), ("none", "imagenet")):
        folder = out / name.replace("/", "_") / "predictions"
        said = {
            part: [load_predictions(folder / f"round_{i}_{branch}_{part}.npz") for i in (0, 1)]
            for part in ("validation", "test")
        }
        accuracies[name] = [
            sklearn.metrics.accuracy_score(p.labels, p.probabilities.argmax(axis=1))
            for p in said["test"]
        ]
        aucs[name] = np.mean(
            [
                sklearn.metrics.roc_auc_score(np.eye(3)[p.labels], p.probabilities)
                for p in said["validation"]
            ]
        )
        assert found[name]["branch"] == branch
        assert found[name]["validation"]["auc"]["mean"] == pytest.approx(aucs[name])
    chosen = max(aucs, key=aucs.get)
    assert summary_["chosen"] == chosen
    assert [name for name, row in found.items() if row["is_chosen"]] == [chosen]
    assert f"Chosen on validation: {chosen}" in printed
    shown = {name for name, row in found.items() if "test" in row}
    assert shown == {chosen, "none"}
    for name in shown:
        row = found[name]["test"]["accuracy"]
        assert row["rounds"] == pytest.approx(accuracies[name])
        assert row["std"] == pytest.approx(np.std(accuracies[name], ddof=1))
        assert f"{np.mean(accuracies[name]):.3f}".lstrip("0") in printed
    if chosen != "none":
        difference = found[chosen]["difference"]["accuracy"]
        expected = np.mean(accuracies[chosen]) - np.mean(accuracies["none"])
        assert difference["mean"] == pytest.approx(expected)
    assert "difference" not in found["none"]


@pytest.mark.slow
def test_table_and_picture_are_of_all_variants(finished):
    out = finished[0]
    with (out / "summary.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["variant"] for row in rows] == list(CHANGES)
    assert [row["status"] for row in rows].count("complete") == 3
    assert [row["chosen_on_validation"] for row in rows].count("true") == 1
    assert rows[2]["validation_auc"] == rows[2]["test_auc_difference_low"] == ""
    assert rows[3]["test_f1_difference"] == ""
    for row in (rows[0], rows[1], rows[3]):
        assert 0 <= float(row["validation_auc"]) <= 1
        tested = row["chosen_on_validation"] == "true" or row["variant"] == "none"
        assert (row["test_accuracy"] != "") == tested
    with PIL.Image.open(out / "summary.png") as image:
        assert image.width > 600


@pytest.mark.slow
def test_equal_pretraining_is_shared_to_the_same_bits(finished, sweep, tmp_path):
    out, printed, _ = finished
    assert "longer/4: pre-trained as short, whose autoencoder it takes" in printed
    found = {row["name"]: row for row in json.loads((out / "summary.json").read_text())["variants"]}
    assert found["longer/4"]["pretraining_from"] == "../short"
    assert found["short"]["pretraining_from"] is None
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


def test_only_what_pretraining_does_not_depend_on_is_shared(data, cache):
    def key(**changes):
        return sharing.pretraining_of(tiny.make_config(data, cache, **changes))

    base = key()
    for field, value in configs.flatten(tiny.make_config(data, cache)).items():
        changed = tiny.make_config(data, cache)
        other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.25}
        if type(value) not in other:
            continue
        changed.update_from_flattened_dict({field: other[type(value)](value)})
        free = field in configs.FREE_FIELDS or field == "rounds.count"
        shared = free or field.split(".")[0] in ("finetune", "evaluation")
        assert (sharing.pretraining_of(changed) == base) == shared, field
    assert key(corruption__kind="random_mask") != base
    assert key(data__protocol="image_level") != base
    assert key(rounds__kind="folds", rounds__count=3) != key(rounds__kind="folds", rounds__count=4)
    assert key(branches=("imagenet",)) is None
    assert key(branches=("mae",), imagenet__model="convnext_tiny") == base


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
    assert "the same command goes on" in printed
    assert not (tmp_path / "none").exists()
    process = start(file, tmp_path)
    process.communicate(timeout=300)
    for folder in ("short", "longer_4", "none"):
        tiny.assert_same(tiny.outcome(tmp_path / folder), tiny.outcome(finished[0] / folder))


# --- Choice and differences -----------------------------------------------------------------------


def predictions(rng, labels, quality, part="test"):
    logits = rng.normal(size=(len(labels), 2)) + quality * np.eye(2)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ids = np.array([f"{part} {i}.png" for i in range(len(labels))])
    return Predictions(ids, labels, probabilities, np.arange(len(labels)))


@pytest.fixture
def scored(monkeypatch, tmp_path):
    """Makes a summary of variants by (quality on validation, on test), of three rounds each."""

    def make(qualities, *, fusion=None, validation=None, **options):
        names = list(qualities)
        made = {}
        for name, (on_validation, on_test) in qualities.items():
            rng, labels = np.random.default_rng(5), np.repeat([0, 1], 60)
            made[name] = summary.Scored(
                "mae",
                fusion,
                [predictions(rng, labels, on_validation, (validation or {}).get(name, "v"))
                 for _ in range(3)],
                [predictions(rng, labels, on_test) for _ in range(3)],
            )  # fmt: skip
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "results.json").touch()
        monkeypatch.setattr(summary, "score", lambda workdir: made[workdir.name])
        monkeypatch.setattr(summary.sharing, "taken_from", lambda *_: None)
        sweep = variants.Sweep(tuple(variants.Variant(n, {}, None) for n in names), names[0])
        return summary.summarize(sweep, tmp_path, {}, resamples=50, **options)

    return make


def test_the_best_on_test_is_not_chosen_and_its_test_figures_are_not_shown(scored, capsys):
    found = scored({"base": (0.5, 0.5), "lucky": (0.8, 4.0), "careful": (1.5, 1.0)})
    assert found["chosen"] == "careful"
    rows = {row["name"]: row for row in found["variants"]}
    assert {name for name, row in rows.items() if "test" in row} == {"base", "careful"}
    assert {name for name, row in rows.items() if "difference" in row} == {"careful"}
    aucs = {name: row["validation"]["auc"]["mean"] for name, row in rows.items()}
    assert aucs["base"] < aucs["lucky"] < aucs["careful"]
    summary.show(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Chosen on validation: the highest AUC there" in printed
    assert "Chosen on validation: careful" in printed
    assert "Validation figures flatter" in printed
    assert printed.count("lucky") == 1  # in the table of validation
    assert "images in 120 groups; the chosen and the baseline:" in printed
    assert "nothing may be chosen" not in printed


def test_all_variants_on_test_are_an_ablation_that_says_so(scored, capsys):
    qualities = {"base": (0.5, 0.5), "lucky": (0.8, 4.0), "careful": (1.5, 1.0)}
    found = scored(qualities, all_on_test=True)
    assert found["chosen"] == "careful"
    assert all("test" in row for row in found["variants"])
    assert ["difference" in row for row in found["variants"]] == [False, True, True]
    summary.show(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("for an ablation: nothing may be chosen from this") == 2
    figure = summary.draw(found)
    assert figure.get_suptitle() == "Chosen on validation: careful"
    assert "nothing may be chosen" in figure.axes[4].get_xlabel()


def test_the_baseline_can_be_chosen_and_is_compared_with_nobody(scored):
    found = scored({"base": (2.0, 0.5), "other": (0.5, 2.0)})
    assert found["chosen"] == "base"
    assert [("test" in row, "difference" in row) for row in found["variants"]] == [
        *((True, False), (False, False)),
    ]
    assert len(summary.draw(found).axes) == 6


def test_what_makes_validation_flatter_more_is_said(scored):
    qualities = {"base": (1.0, 1.0), "other": (1.0, 1.0)}
    plain = scored(qualities)["selection"]
    assert "fusion" not in plain
    assert "other validation images" not in plain
    fitted = scored(qualities, fusion="stacked")["selection"]
    assert "More so those of base, other, whose fusion was fitted on these images." in fitted
    assert "fusion" not in scored(qualities, fusion="mean")["selection"]
    moved = scored(qualities, validation={"other": "w"})["selection"]
    assert moved.endswith("of different images: other.")


def test_the_interval_of_one_round_is_that_of_the_paired_images():
    """Against the normal approximation of the mean of n paired differences of right and wrong."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 400)
    ours, theirs = predictions(rng, labels, 1.5), predictions(rng, labels, 1.0)
    found = summary.paired_difference([ours], [theirs], resamples=4000)["accuracy"]
    right = [p.probabilities.argmax(axis=1) == labels for p in (ours, theirs)]
    each = right[0].astype(float) - right[1]
    by_class = [each[labels == c] for c in (0, 1)]
    error = np.sqrt(sum(x.var(ddof=1) / len(x) for x in by_class)) / 2
    assert found["mean"] == pytest.approx(each.mean())
    assert found["low"] == pytest.approx(each.mean() - 1.963 * error, abs=0.003)
    assert found["high"] == pytest.approx(each.mean() + 1.963 * error, abs=0.003)


def test_the_interval_of_two_rounds_knows_that_they_are_two():
    """Rounds that differ much and agree on the cases: nearly Student's t of one degree."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 2000)
    theirs = predictions(rng, labels, 0.5)
    ours = [predictions(rng, labels, quality) for quality in (0.7, 1.0)]
    found = summary.paired_difference(ours, [theirs, theirs], resamples=200)["auc"]
    gains = [
        sklearn.metrics.roc_auc_score(labels, p.probabilities[:, 1])
        - sklearn.metrics.roc_auc_score(labels, theirs.probabilities[:, 1])
        for p in ours
    ]
    spread = 12.706 * np.std(gains, ddof=1) / np.sqrt(2)
    assert found["mean"] == pytest.approx(np.mean(gains))
    assert found["high"] - found["mean"] == pytest.approx(spread, rel=0.05)


def test_rounds_that_disagree_widen_the_interval_and_equals_have_none():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 100)
    theirs = [predictions(rng, labels, 1.0) for _ in range(4)]
    alike = summary.paired_difference(theirs, theirs, resamples=100)
    assert all(row == {"mean": 0.0, "low": 0.0, "high": 0.0} for row in alike.values())
    ours = [predictions(rng, labels, quality) for quality in (0.0, 1.0, 2.0, 4.0)]
    mixed = summary.paired_difference(ours, theirs, resamples=500)["auc"]
    steady = summary.paired_difference([ours[2]] * 4, [theirs[0]] * 4, resamples=500)["auc"]
    assert mixed["high"] - mixed["low"] > 2 * (steady["high"] - steady["low"])


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


def test_the_longest_name_fits_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    figures = {"mean": 0.5, "std": 0.1, "rounds": [0.4, 0.6]}
    difference = {"mean": -0.05, "low": -0.1, "high": 0.05}
    row = {
        "name": "entropy_noise_0.18",
        "status": "complete",
        "is_baseline": False,
        "is_chosen": True,
        "rounds": 2,
        "validation": dict.fromkeys(summary.METRICS, figures),
        "test": dict.fromkeys(summary.METRICS, figures),
        "test_groups": 147,
        "difference": dict.fromkeys(summary.METRICS, difference),
    }
    summary.show(
        {
            "baseline": "no_pretraining",
            "chosen": row["name"],
            "selection": "Chosen on validation.",
            "all_on_test": False,
            "test": "the chosen and the baseline",
            "differences": "Differences.",
            "variants": [row],
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (compared,) = [line for line in lines if "-.050" in line]
    assert compared.split() == ["entropy_noise_0.18", *["-.050", "(-.100", "+.050)"] * 3]


# --- The sweeps of configs/sweeps -----------------------------------------------------------------


def test_figure_2_is_five_pairs_of_epochs_of_the_recipe():
    sweep = variants.read(epochs_sweep.get_config("busi,cpu"))
    names = ["100/30", "100/45", "500/30", "500/45", "1000/15"]
    assert [variant.name for variant in sweep.variants] == names
    assert sweep.baseline == "1000/15"
    for variant in sweep.variants:
        config = variant.config
        assert f"{config.pretrain.epochs}/{config.finetune.epochs}" == variant.name
        assert (config.data.name, config.model.name) == ("busi", "convnext_atto")
        rules.check(config, 1)
    keys = [sharing.pretraining_of(variant.config) for variant in sweep.variants]
    assert keys[0] == keys[1] != keys[2] == keys[3] != keys[4]
    divided = variants.read(epochs_sweep.get_config("demo,divide=5"))
    names = ["20/6", "20/9", "100/6", "100/9", "200/3"]
    assert [variant.name for variant in divided.variants] == names


def test_corruptions_are_compared_with_the_same_network_from_random_weights():
    sweep = variants.read(corruption_sweep.get_config("isic2018,cpu"))
    kinds = {v.name: (v.config.corruption.kind, v.config.corruption.scale) for v in sweep.variants}
    assert kinds.pop("no_pretraining")
    assert kinds == {
        "entropy_noise": ("entropy_noise", 1.0),
        "entropy_noise_0.18": ("entropy_noise", 0.18),
        "entropy_noise_0.05": ("entropy_noise", 0.05),
        "entropy_topk": ("entropy_topk", 1.0),
        "entropy_sampled": ("entropy_sampled", 1.0),
        "random_mask": ("random_mask", 1.0),
        "uniform_noise": ("uniform_noise", 1.0),
    }
    starts = []
    for variant in (sweep.variants[0], sweep.variants[1]):
        rules.check(variant.config, 1)
        (branch,) = branches.of(variant.config)
        network = branches.classifier(branch, variant.config, num_classes=3)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        model = variant.config.model
        options = {"kernel_init": model.kernel_init, "layer_scale": model.layer_scale}
        starts.append(initial_variables(network, 0, image, **options))
        budget = ("epochs", "batch_size", "learning_rate", "layer_decay", "drop_path_rate")
        assert [variant.config.finetune[x] for x in budget] == [
            sweep.variants[2].config.finetune[x] for x in budget
        ]
    jax.tree.map(np.testing.assert_array_equal, *starts)


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (epochs_sweep, None, "needs a recipe behind the colon"),
        (corruption_sweep, "bussi", "'bussi' is none of brain_tumor, busi"),
        (corruption_sweep, "brain_tumor", "no branch 'mae'"),
        (epochs_sweep, "busi,divide=0", "needs a whole number"),
        (epochs_sweep, "busi,divide=50", "makes equals"),
        (epochs_sweep, "busi,gpu", "There is no preset 'gpu'"),
    ],
)
def test_words_that_are_none_are_told(module, words, message):
    with pytest.raises(ConfigError, match=message):
        module.get_config(words)


@pytest.mark.parametrize(
    ("changes", "baseline", "given", "message"),
    [
        ({"a": {"seed": 1}, "b": {"seed": 1}}, "a", (), "'a' and 'b' of the sweep are the same"),
        ({"a/b": {"seed": 1}, "a_b": {"seed": 2}}, "a_b", (), "are the same"),
        ({"a": {"sed": 1}}, "a", (), "there is no such field"),
        ({"..": {"seed": 1}}, "..", (), "no name of a variant"),
        ({"a": {"seed": 1}}, "b", (), "no variant 'b', its baseline"),
        ({"a": {"seed": 1}}, "a", ("seed",), "--config.seed cannot be set"),
    ],
)
def test_a_sweep_that_cannot_be_is_told(data, cache, changes, baseline, given, message):
    attached = variants.attach(tiny.make_config(data, cache), changes, baseline=baseline)
    with pytest.raises(ConfigError, match=message):
        variants.read(attached, given)


def test_a_recipe_is_no_sweep(data, cache):
    with pytest.raises(ConfigError, match="is no sweep, but a single recipe"):
        variants.read(tiny.make_config(data, cache))


def test_all_variants_are_checked_before_any_is_run(data, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda **_: pytest.fail("trained"))
    bad = make_sweep(data, cache, {"none": {}, "bad": {"finetune.epochs": 0}})
    with pytest.raises(ConfigError, match=r"Of the variant 'bad': [\s\S]*finetune.epochs is 0"):
        run.check(bad, tmp_path)


@pytest.mark.slow
def test_a_folder_of_another_sweep_is_refused(finished, data, cache):
    other = make_sweep(data, cache, {**CHANGES, "short": {"finetune.epochs": 5}})
    with pytest.raises(ConfigError, match=r"finetune\.epochs: 3 in the workdir, 5 now"):
        run.check(other, finished[0])


def test_a_mistake_ends_in_a_sentence(file, tmp_path):
    process = start(file, tmp_path / "out", "--config.finetune.epochs=7")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "--config.finetune.epochs cannot be set: the sweep sets it ('short': 3)" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


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


def test_a_variant_of_another_image_size_is_evaluated_at_its_own(data, cache):
    changes = {"small": {"data.image_size": 32}, "large": {"data.image_size": 64}}
    attached = variants.attach(tiny.make_config(data, cache), changes, baseline="small")
    sweep = variants.read(attached)
    assert [v.config.evaluation.resize for v in sweep.variants] == [32, 64]


def test_the_range_of_a_data_set_goes_with_the_pretraining_made_by_it(data, cache, tmp_path):
    config = tiny.make_config(data, cache, data__intensity_range="dataset")
    first, second = (variants.Variant(name, {}, config) for name in ("first", "second"))
    paths = Paths(tmp_path / "first", folds=False)
    for path in (paths.splits(0), paths.pretraining_report(0), paths.autoencoder(0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[]")
    intensity = IntensityRange("dataset", {"uint16": (0.0, 4095.0)})
    record_intensity_range(paths, intensity, begun=False)
    sharing.take_pretraining(second, [first, second], tmp_path)
    target = Paths(tmp_path / "second", folds=False)
    record_intensity_range(target, intensity, begun=True)  # is there, and the same
