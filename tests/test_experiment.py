"""Whole runs of the recipe, on a network and images small enough for seconds.

Epochs and learning rates are constants of the compiled steps: tests that leave them alone share one
compilation.
"""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import time

import numpy as np
import PIL.Image
import pytest

from egmae_jax import experiment, models
from egmae_jax.core import hosts
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import AccessError, DamagedFileError, StorageError
from egmae_jax.data import splits
from egmae_jax.data.datasets import DataError
from egmae_jax.evaluation.metrics import compute_metrics
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.method import augment
from egmae_jax.models import timm
from egmae_jax.models import weights as model_weights
from egmae_jax.training import loop, nonfinite
from tests import tiny
from tests.tiny import assert_same, outcome, run_process

NUM_KILLS = int(os.environ.get("NUM_KILLS", "4"))  # of the kill test


def test_results_are_complete(finished):
    results = json.loads((finished.workdir / "results.json").read_text())
    assert results == json.loads(json.dumps(finished.results))
    dataset = results["dataset"]
    assert dataset["classes"] == ["benign", "malignant", "normal"]
    parts = [f"{sum(dataset['counts'][part].values())} {part}" for part in splits.PARTS]
    assert dataset["account"] == f"36 images found: {', '.join(parts)}"
    assert (dataset["found"], dataset["left_out"], dataset["other_classes"]) == (36, 0, {})
    assert results["pretraining_saw_test"] is False
    assert results["imagenet_weights"] == {"imagenet": "none"}
    assert [(r["round"], r["seed"]) for r in results["rounds"]] == [(0, 0), (1, 1)]
    assert results["summary"].keys() == {"imagenet", "mae", "ensemble"}
    assert results["pretraining"][0]["reconstruction_loss"] > 0
    assert results["pretraining"][0]["mean_colour_loss"] > 0


def test_the_ensemble_is_recomputed_from_the_predictions(finished):
    workdir, results = finished.workdir, finished.results
    rows = {row["file"]: row for row in splits.read(workdir / "splits.json")}
    classes = results["dataset"]["classes"]
    for i, scores in enumerate(results["rounds"]):
        first, second = (
            load_predictions(workdir / "predictions" / f"round_{i}_{branch}_test.npz")
            for branch in ("imagenet", "mae")
        )
        # Every test image, once.
        assert sorted(first.ids) == sorted(f for f, row in rows.items() if row["split"] == "test")
        assert np.array_equal(first.ids, second.ids)
        assert [classes[x] for x in first.labels] == [rows[f]["label"] for f in first.ids]
        np.testing.assert_allclose(second.probabilities.sum(axis=1), 1, rtol=1e-5)
        mean = (first.probabilities + second.probabilities) / 2
        metrics = compute_metrics(first.labels, mean)
        for name in ("accuracy", "auc"):
            assert metrics[name] == pytest.approx(scores["test"]["ensemble"][name])


def test_the_reported_epoch_is_the_best_on_validation(finished):
    workdir = finished.workdir
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [r for r in rows if (r["stage"], r["round"]) == ("finetune/mae", 1)]
    best = max(rows, key=lambda r: (r["validation_auc"], -r["validation_loss"]))
    saved = load_predictions(workdir / "predictions" / "round_1_mae_validation.npz")
    metrics = compute_metrics(saved.labels, saved.probabilities)
    assert metrics["auc"] == pytest.approx(best["validation_auc"])
    assert metrics["accuracy"] == pytest.approx(best["validation_accuracy"])


def copy(finished, tmp_path):
    return shutil.copytree(finished.workdir, tmp_path / "copy")


def test_a_complete_run_trains_nothing_again(finished, tmp_path, monkeypatch):
    """Though a kill left checkpoints behind, and somebody deleted a report."""
    workdir = copy(finished, tmp_path)
    left = [workdir / "pretrain" / "checkpoints", workdir / "round_1" / "mae" / "checkpoints"]
    for folder in left:
        folder.mkdir(parents=True)
    (workdir / "pretrain" / "report.json").unlink()
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    assert experiment.run(finished.config, workdir) == finished.results
    assert not any(folder.exists() for folder in left)
    assert_same(outcome(finished.workdir), outcome(workdir))
    log = (finished.workdir / "metrics.jsonl").read_text()
    assert (workdir / "metrics.jsonl").read_text() == log


def test_a_single_stage_needs_the_one_before_and_stops_after_its_own(finished, tmp_path):
    for stage, before in (("finetune", "pretrain"), ("evaluate", "finetune")):
        with pytest.raises(experiment.StageError, match=f"--stage={before}"):
            experiment.run(finished.config, tmp_path / "new", stage=stage)
    workdir = copy(finished, tmp_path)
    (workdir / "results.json").unlink()
    assert experiment.run(finished.config, workdir, stage="finetune") is None
    assert not (workdir / "results.json").exists()
    assert experiment.run(finished.config, workdir, stage="evaluate") == finished.results


@pytest.mark.essential
@pytest.mark.slow
def test_stages_one_by_one_give_the_same_bits(finished, data, cache, tmp_path):
    """Without TensorBoard's pictures, too."""
    config = tiny.make_config(data, cache)
    for stage in ("pretrain", "finetune"):
        assert experiment.run(config, tmp_path, stage=stage) is None
    results = experiment.run(config, tmp_path, stage="evaluate")
    assert results["rounds"] == finished.results["rounds"]
    assert not (tmp_path / "tensorboard").exists()
    assert_same(outcome(finished.workdir), outcome(tmp_path))


def test_another_seed_gives_other_bits(finished):
    """Rounds differ by their seed alone."""
    first, second = (
        {name: x for name, x in outcome(finished.workdir).items() if f"round_{i}_" in name}
        for i in range(2)
    )
    assert len(first) == len(second) > 20
    kernels = [name for name in first if name.endswith((".weight", "test.npz"))]
    for name in kernels:
        assert not np.array_equal(first[name], second[name.replace("round_0", "round_1")]), name


def test_a_run_goes_on_where_its_workdir_was_moved_and_the_clock_goes_backwards(
    finished, data, cache, tmp_path, monkeypatch
):
    """The images' files are of the future."""
    images = shutil.copytree(data, tmp_path / "data")
    for path in images.rglob("*.png"):
        os.utime(path, (2**32, 2**32))
    began, clock = time.time(), itertools.count()
    monkeypatch.setattr(time, "time", lambda: began - 3600 * next(clock))
    workdir = copy(finished, tmp_path)
    remove_predictions(workdir)
    experiment.run(tiny.make_config(images, cache), workdir)
    assert_same(outcome(finished.workdir), outcome(workdir))


def remove_predictions(workdir):
    for path in workdir.glob("predictions/round_1_*"):
        path.unlink()


def test_a_full_disk_is_named_and_the_same_command_goes_on(finished, tmp_path, monkeypatch):
    workdir = copy(finished, tmp_path)
    remove_predictions(workdir)
    left, sync = [3], os.fsync  # files that there is room for

    def fill(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(StorageError, match="No space left"):
        experiment.run(finished.config, workdir)
    monkeypatch.undo()
    experiment.run(finished.config, workdir)
    assert_same(outcome(finished.workdir), outcome(workdir))


def test_of_several_hosts_one_writes(finished, tmp_path, monkeypatch):
    """Every other leaves the folder as it is, but for checkpoints, which Orbax writes by all."""
    workdir = copy(finished, tmp_path)
    for name in ("predictions", "round_1"):
        shutil.rmtree(workdir / name)
    for name in ("results.json", "audit.json", "export/round_0_mae.safetensors"):
        (workdir / name).unlink()
    for path in workdir.glob("export/round_1_*"):
        path.unlink()
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    monkeypatch.setattr(hosts, "is_primary", lambda: False)
    with pytest.raises(DamagedFileError, match=r"layers\.json is missing"):  # another writes it
        experiment.run(finished.config, workdir, stage="finetune")
    found = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    assert {p for p in found if "checkpoints" not in p.parts} == set(before)
    assert all(found[p] == content for p, content in before.items())


@pytest.mark.parametrize(
    ("file", "is_lost", "message"),
    [
        ("config.json", False, "damaged .*: restore it, or start in another --workdir"),
        ("config.json", True, "missing: restore it"),
        # A new split would test old parameters on images they were trained on.
        ("splits.json", True, "missing: restore it"),
        ("pretrain/report.json", False, "damaged .*: delete it and run again"),
        ("predictions/round_0_mae_test.npz", False, "damaged .*--stage=evaluate"),
    ],
)
def test_a_damaged_or_lost_file_of_the_workdir_is_named(finished, tmp_path, file, is_lost, message):
    workdir = copy(finished, tmp_path)
    path = workdir / file
    if is_lost:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedFileError, match=rf"{file} is {message}"):
        experiment.run(finished.config, workdir)
    assert path.exists() != is_lost


def test_a_workdir_among_images_is_refused_and_left_as_it_was(data, cache, tmp_path):
    images = shutil.copytree(data, tmp_path / "images")
    before = sorted(images.rglob("*"))
    config = tiny.make_config(images, cache, data__name="image_folder")
    for workdir in (images, images / "run"):
        with pytest.raises(ConfigError, match=r"is in data\.dir.*a folder of its own"):
            experiment.run(config, workdir)
    assert sorted(images.rglob("*")) == before


def test_a_read_only_workdir_is_refused(data, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # as a read-only disk, even to root
    with pytest.raises(AccessError, match=f"cannot be written to: {tmp_path} is not writ"):
        experiment.run(tiny.make_config(data, cache), tmp_path / "workdir")
    assert not (tmp_path / "workdir").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(AccessError, match=r"cannot be written to: .* is a file"):
        experiment.run(tiny.make_config(data, cache), tmp_path / "file")


def test_changed_images_on_the_same_workdir_are_refused(data, cache, tmp_path):
    copy = shutil.copytree(data, tmp_path / "data")
    config = tiny.make_config(copy, cache)
    experiment.Experiment(config, tmp_path / "workdir")
    (tmp_path / "workdir" / "pretrain").mkdir()  # where its checkpoints will be
    (copy / "benign" / "benign (3).png").unlink()
    shutil.copy(copy / "normal" / "normal (1).png", copy / "benign" / "benign (4).png")
    with pytest.raises(DataError) as error:
        experiment.Experiment(config, tmp_path / "workdir")
    assert "removed: benign/benign (3).png" in str(error.value)
    assert "changed: benign/benign (4).png" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_divergence_that_only_evaluation_shows_ends_in_a_sentence(data, cache, tmp_path, stage):
    """One step an epoch: after it the parameters are finite, but no activation is."""
    fields = {"epochs": 1, "batch_size": 16, "learning_rate": 1e20, "warmup_epochs": 0}
    branch = "mae" if stage == "pretrain" else "imagenet"
    config = tiny.make_config(data, cache, branches=(branch,), rounds__count=1)
    config.update_from_flattened_dict({f"{stage}.{name}": x for name, x in fields.items()})
    for _ in range(2):  # the same command says the same
        with pytest.raises(nonfinite.NonFiniteError, match=rf"{stage}.* not finite.*diverged"):
            experiment.run(config, tmp_path)


@pytest.mark.essential
@pytest.mark.slow
def test_folds_pretrain_and_test_each_on_its_own_part(data, cache, tmp_path, capsys):
    config = tiny.make_config(data, cache, rounds__kind="folds", rounds__count=3)
    results = experiment.run(config, tmp_path)
    assert len(results["pretraining"]) == 3
    tested = []
    for fold in range(3):
        rows = splits.read(tmp_path / f"round_{fold}" / "splits.json")
        tested += [row["file"] for row in rows if row["split"] == "test"]
        assert (tmp_path / f"round_{fold}" / "pretrain" / "autoencoder.safetensors").exists()
    assert len(tested) == len(set(tested)) == 36
    counts = [sum(r["counts"]["test"].values()) for r in results["rounds"]]
    assert sum(counts) == 36
    output = capsys.readouterr().out
    assert "36 test images in 36 groups (12 benign, 12 malignant, 12 normal)" in output
    assert "36 images found: " in output
    assert "(in round 0)." in output


def test_what_is_odd_is_said_at_the_start(data, cache, tmp_path, caplog):
    folder = shutil.copytree(data, tmp_path / "data")
    shutil.copy(folder / "benign" / "benign (12).png", folder / "normal" / "copy.png")
    changes = {"corruption__kind": "random_mask", "corruption__scale": 0.5}
    config = tiny.make_config(folder, cache, pretrain__warmup_epochs=3, **changes)
    with caplog.at_level("WARNING", logger="egmae_jax"):
        experiment.Experiment(config, tmp_path / "workdir")
    assert "pretrain.warmup_epochs is 3 of 3 epochs" in caplog.text
    assert "corruption.scale is 0.5, but corruption.kind=random_mask does not read" in caplog.text
    assert "1 pairs of near-duplicates have different labels (data.on_conflict is keep)" in (
        caplog.text
    )
    assert "benign/benign (12).png | normal/copy.png" in caplog.text


def test_every_image_that_was_found_is_accounted_for(data, cache, tmp_path, caplog):
    """Copies, conflicts, a leak, an unreadable file and a class that is not asked for."""
    folder = shutil.copytree(data, tmp_path / "data")
    shutil.copy(folder / "benign" / "benign (12).png", folder / "leak.png")
    shutil.copy(folder / "benign" / "benign (1).png", folder / "copy.png")
    shutil.copy(folder / "malignant" / "malignant (1).png", folder / "conflict.png")
    (folder / "broken.png").write_bytes(b"no image")
    PIL.Image.new("L", (20, 20), 9).save(folder / "cyst.png")
    rows = ["path,label,split", "broken.png,benign,train", "cyst.png,cyst,train"]
    # A leak of other pixels: of identical ones deduplicate keeps the one that is tested on.
    leak = np.asarray(PIL.Image.open(folder / "leak.png"))
    PIL.Image.fromarray(np.maximum(leak, 1) - 1).save(folder / "leak.png")
    rows += ["leak.png,benign,train", "copy.png,benign,train", "conflict.png,benign,train"]
    for label in ("benign", "malignant"):
        for k in range(1, 13):
            part = "train" if k < 9 else "validation" if k < 11 else "test"
            rows.append(f"{label}/{label} ({k}).png,{label},{part}")
    (folder / "manifest.csv").write_text("\n".join(rows))
    fields = {
        **{"name": "manifest", "protocol": "official", "deduplicate": True, "on_error": "skip"},
        **{"on_conflict": "drop", "classes": ("benign", "malignant")},
    }
    config = tiny.make_config(folder, cache, **{f"data__{k}": x for k, x in fields.items()})
    with caplog.at_level("INFO", logger="egmae_jax"):
        found = experiment.Experiment(config, tmp_path / "workdir").run.data
        config.data.protocol = "grouped"
        experiment.Experiment(config, tmp_path / "grouped")
    assert "are in official validation or test parts, which data.protocol=grouped" in caplog.text
    assert found.left_out == {
        "near-duplicates with different labels": 2,
        "identical copies": 1,
        "that would leak into validation or test": 1,
    }
    parts = [len(found.indices(0, part)) for part in splits.PARTS]
    assert parts == [8 + 7, 4, 4]
    assert found.prepared.num_found == len(rows) - 1 == 29
    assert sum(parts) + sum(found.left_out.values()) + 1 + 1 == 29
    named = {row["file"] for row in splits.read(tmp_path / "workdir" / "splits.json")}
    assert not named & {"copy.png", "conflict.png", "leak.png", "broken.png", "cyst.png"}
    assert (
        "29 images found: 15 train, 4 validation, 4 test, 4 left out (2 near-duplicates with "
        "different labels, 1 identical copies, 1 that would leak into validation or test)"
        ", 1 unreadable, 1 of classes not selected (cyst)"
    ) in caplog.text


def test_a_class_that_nothing_is_left_of_is_named_with_the_cause(data, cache, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "cyst").mkdir()
    (folder / "cyst" / "1.png").write_bytes(b"no image")
    shutil.copy(folder / "benign" / "benign (1).png", folder / "cyst" / "2.png")
    fields = {"data__on_error": "skip", "data__on_conflict": "drop"}
    config = tiny.make_config(folder, cache, **fields)
    message = r"class 'cyst' has 0 images.* 2 images were left out.*files .1.: cyst/1\.png"
    with pytest.raises(DataError, match=message):
        experiment.Experiment(config, tmp_path / "workdir")


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        ({"data__dir": "/nowhere"}, "all", "There is no folder /nowhere"),
        ({"data__protocol": "official"}, "all", "no validation and no test part"),
        ({"data__group_pattern": "(q)"}, "all", "matches none of the"),
        ({}, "finetune", "run --stage=pretrain"),
    ],
)
def test_what_costs_nothing_is_checked_before_weights_are_fetched(
    data, cache, tmp_path, monkeypatch, changes, stage, message
):
    monkeypatch.setattr(model_weights, "locate", lambda source: pytest.fail("asked the hub"))
    monkeypatch.setattr(
        experiment.images, "prepare_images", lambda *_, **__: pytest.fail("read the images")
    )
    config = tiny.make_config(data, cache, imagenet__weights="default", **changes)
    with pytest.raises((DataError, experiment.StageError), match=message):
        experiment.run(config, tmp_path / "workdir", stage=stage)
    assert not (tmp_path / "workdir").exists()


def test_weights_are_fetched_before_images_are_read(data, cache, tmp_path, monkeypatch):
    def no_hub(source):
        raise FileNotFoundError("no hub.")

    monkeypatch.setattr(model_weights, "locate", no_hub)
    monkeypatch.setattr(
        experiment.images, "prepare_images", lambda *_, **__: pytest.fail("read the images")
    )
    config = tiny.make_config(data, cache, imagenet__weights="default")
    with pytest.raises(FileNotFoundError, match="no hub"):
        experiment.run(config, tmp_path / "workdir")


@pytest.mark.slow
def test_pretraining_on_test_images_is_recorded_and_bfloat16_keeps_float32_parameters(
    data, cache, tmp_path
):
    fields = {"pretrain__splits": ("train", "test"), "model__dtype": "bfloat16"}
    results = experiment.run(tiny.make_config(data, cache, rounds__count=1, **fields), tmp_path)
    assert results["pretraining_saw_test"] is True
    assert results["summary"]["mae"]["auc"]["std"] is None  # a single round has no deviation
    assert all(array.dtype == np.float32 for array in outcome(tmp_path).values())


@pytest.mark.slow
def test_streaming_gives_the_bits_of_resident_images(finished, data, cache, tmp_path):
    config = tiny.make_config(data, cache, data__feeding="stream")
    results = experiment.run(config, tmp_path)
    assert_same(outcome(finished.workdir), outcome(tmp_path))
    assert results["rounds"] == finished.results["rounds"]


@pytest.mark.slow
def test_flat_images_mask_nothing_and_are_refused(cache, tmp_path):
    rng = np.random.default_rng(0)
    for label, grey in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for k in range(9):
            # Of one colour each, and one row of pixels that keeps them from being duplicates.
            image = np.full((40, 40), grey, np.uint8)
            image[0] = rng.integers(0, 256, 40)
            PIL.Image.fromarray(image).save(tmp_path / "data" / label / f"{k}.png")
    config = tiny.make_config(tmp_path / "data", cache, corruption__threshold=5.0)
    with pytest.raises(DataError, match="No patch of the validation images is masked"):
        experiment.run(config, tmp_path / "workdir", stage="pretrain")


@pytest.mark.slow
def test_imagenet_weights_are_asked_for_only_where_they_are_used(data, cache, tmp_path):
    weights, workdir = tmp_path / "imagenet.safetensors", tmp_path / "workdir"
    config = tiny.make_config(data, cache, imagenet__weights=str(weights), rounds__count=1)
    experiment.run(config, workdir, stage="pretrain")
    with pytest.raises(model_weights.MissingWeightsError, match=r"imagenet\.weights=none"):
        experiment.run(config, workdir, stage="finetune")
    tiny.write_weights(weights, tiny.MODEL, seed=7)
    experiment.Experiment(config, workdir, "finetune")
    (workdir / "round_0" / "imagenet").mkdir(parents=True)  # where its checkpoints will be
    tiny.write_weights(weights, tiny.MODEL, seed=8)
    with pytest.raises(ConfigError, match="not the file this run began with"):
        experiment.run(config, workdir, "finetune")
    tiny.write_weights(weights, tiny.MODEL, seed=7)
    record = workdir / "imagenet_weights.json"
    record.rename(tmp_path / "record")
    with pytest.raises(DamagedFileError, match=r"imagenet_weights\.json is missing: restore it"):
        experiment.run(config, workdir, "finetune")
    (tmp_path / "record").rename(record)
    results = experiment.run(config, workdir)
    weights.unlink()
    assert experiment.run(config, workdir) == results  # complete: nothing starts from them


@pytest.fixture(scope="module")
def companions(data, cache, tmp_path_factory):
    """Config, workdir and results of a run without 'mae'; its images suit SqueezeNet's strides."""
    workdir = tmp_path_factory.mktemp("companions")
    config = tiny.make_config(
        data,
        cache,
        branches=("squeezenet1_1", tiny.ASFF),
        data__image_size=64,
        data__store_size=72,
        finetune__resize=68,
        finetune__epochs=1,
    )
    return config, workdir, experiment.run(config, workdir)


@pytest.mark.slow
def test_fusion_weights_of_an_asff_are_given_by_class(companions):
    config, workdir, results = companions
    assert results["branches"] == {"squeezenet1_1": "squeezenet1_1", tiny.ASFF: tiny.ASFF}
    stages = experiment.Experiment(config, workdir)
    images = stages.run.data.evaluation(0, "test")
    ((batch, indices, _),) = images.batches(len(images))
    labels = load_predictions(workdir / f"predictions/round_1_{tiny.ASFF}_test.npz").labels
    variables = timm.load(workdir / "export" / f"round_1_{tiny.ASFF}.safetensors", tiny.ASFF)
    network = models.create(tiny.ASFF, 3).bind(variables, mutable=["intermediates"])
    network(augment.normalize(batch.take(indices).pixels))
    weights = np.asarray(network.variables["intermediates"]["fusion"]["weights"])
    found = results["rounds"][1]["fusion_weights"]
    assert found.keys() == {tiny.ASFF}
    assert list(found[tiny.ASFF]) == results["dataset"]["classes"]
    for label, row in enumerate(found[tiny.ASFF].values()):
        mine = weights[labels == label]
        assert row["images"] == len(mine) > 1
        for column, part in enumerate(("mid", "high")):
            assert row[part]["mean"] == pytest.approx(mine[:, column].mean(), abs=1e-5)
            assert row[part]["std"] == pytest.approx(mine[:, column].std(ddof=1), abs=1e-5)
        assert row["mid"]["mean"] + row["high"]["mean"] == pytest.approx(1)
    assert found != results["rounds"][0]["fusion_weights"]


@pytest.mark.slow
def test_fusion_weights_are_made_again_where_they_are_lost_and_printed(
    companions, tmp_path, capsys
):
    config, finished, results = companions
    workdir = shutil.copytree(finished, tmp_path / "copy")
    (workdir / f"predictions/round_0_{tiny.ASFF}_fusion_weights.json").unlink()
    assert experiment.run(config, workdir) == results
    output = " ".join(capsys.readouterr().out.split())
    assert f"{tiny.ASFF}: fusion weights, mean" in output
    assert "averaged over 2 rounds" in output
    rounds = [r["fusion_weights"][tiny.ASFF]["normal"]["mid"] for r in results["rounds"]]
    mean, std = (f"{np.mean([r[key] for r in rounds]):.3f}".lstrip("0") for key in ("mean", "std"))
    assert f"{mean} ± {std}" in output


@pytest.mark.essential
@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(finished, data, cache, tmp_path):
    moments = random.Random(0)
    kills = 0
    while True:
        process = run_process(data, cache, tmp_path, "checkpoint.save_seconds=0.0")
        try:
            if kills < NUM_KILLS:
                # Starting takes seconds; after the first lines of the log, anything may be on.
                while kills and "results go to" not in process.stdout.readline():
                    pass
                time.sleep(moments.uniform(0, 6))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    continue
            output = process.communicate(timeout=120)[0]
            assert process.returncode == 0, output
            break
        finally:
            process.kill()
            process.wait()
    assert_same(outcome(finished.workdir), outcome(tmp_path))
    scores = json.loads((tmp_path / "results.json").read_text())
    assert scores["rounds"] == finished.results["rounds"]
