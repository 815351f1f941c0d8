"""Images without labels: which are found, which are left out, and what a run does with them."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest

from egmae_jax import experiment
from egmae_jax.core.errors import ConfigError
from egmae_jax.data import phantoms, splits
from egmae_jax.data.datasets import DataError
from egmae_jax.data.listing import list_files
from egmae_jax.data.prepare import prepare
from egmae_jax.data.unlabelled import common_groups, join
from egmae_jax.report import notes
from egmae_jax.report.content import Content
from tests import tiny


def first(workdir, part):
    """The first image of a part of a run."""
    return next(r["file"] for r in splits.read(workdir / "splits.json") if r["split"] == part)


@pytest.fixture(scope="module")
def folder(data, finished, tmp_path_factory):
    """A tree of ten images of other phantoms, and of four that show labelled ones again."""
    folder = tmp_path_factory.mktemp("unlabelled")
    others = folder.with_name("others")
    phantoms.write(others, images_per_class=4, seed=7, height=48, width=64)
    sources = sorted(others.rglob("*.png"))[:10]
    for i, (suffix, path) in enumerate(
        zip(["png", "tif", "jpg", "bmp", "webp"] * 2, sources, strict=True)
    ):
        target = folder / f"ward_{i % 2}" / f"{i}.{suffix}"
        target.parent.mkdir(exist_ok=True)
        PIL.Image.open(path).save(target)
    (folder / "ward_0" / "notes.txt").write_text("not an image")
    # A smaller JPEG of a test image, a mirrored validation image, and a training image twice.
    test, validation, train = (
        PIL.Image.open(data / first(finished.workdir, part))
        for part in ("test", "validation", "train")
    )
    test.resize((60, 45)).save(folder / "smaller.jpg", quality=90)
    validation.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    train.save(folder / "again.png")
    train.save(folder / "again.tif")
    return folder


def uses(workdir):
    return {
        row["file"]: row["use"] for row in json.loads((workdir / "unlabelled.json").read_text())
    }


def config(data, cache, folder, **changes):
    return tiny.make_config(data, cache, pretrain__unlabelled=(str(folder),), **changes)


@pytest.fixture(scope="module")
def trained(data, cache, folder, tmp_path_factory):
    """A run whose pre-training is on the training part and the folder."""
    workdir = tmp_path_factory.mktemp("beside")
    changes = {"rounds__count": 1, "branches": ("mae",), "evaluation__report": True}
    return workdir, experiment.run(config(data, cache, folder, **changes), workdir)


def test_images_of_every_format_are_used_and_those_of_held_out_images_left_out(trained):
    workdir, results = trained
    found = uses(workdir)
    assert {file: use for file, use in found.items() if use != "train"} == {
        "smaller.jpg": "leak",
        "mirrored.png": "leak",
        "again.png": "copy",
        "again.tif": "copy",
    }
    assert len(found) == 14
    (report,) = results["pretraining_unlabelled"]
    assert (report["used"], list(report["left_out"].values())) == (10, [2, 2])
    assert report["groups_of"] == {"validation": 0, "test": 0}
    assert results["pretraining_saw_test"] is False
    page = (workdir / "report.html").read_text()
    assert "10 used; 2 left out as near-duplicates or patients of validation or test images" in page
    origin = notes.origin(Content(workdir), "mae")
    assert origin == "pre-training on the train images and 10 unlabelled images"


def test_pretraining_takes_them_and_finetuning_does_not(trained, finished):
    workdir, _ = trained
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    before = [
        json.loads(line) for line in (finished.workdir / "metrics.jsonl").read_text().splitlines()
    ]
    steps, steps_before = (
        {row["stage"]: row["step"] for row in listed if row["epoch"] == 1 and not row["round"]}
        for listed in (rows, before)
    )
    train = sum(finished.results["dataset"]["counts"]["train"].values())
    assert (steps_before["pretrain"], steps["pretrain"]) == (train // 8, (train + 10) // 8)
    assert steps["finetune/mae"] == steps_before["finetune/mae"]


@pytest.mark.essential
@pytest.mark.slow
def test_without_parts_the_folder_is_all_and_resuming_gives_the_same_bits(
    data, cache, folder, tmp_path
):
    changes = {"rounds__count": 1, "branches": ("mae",), "pretrain__splits": ()}
    alone = config(data, cache, folder, **changes)
    experiment.run(alone, tmp_path / "whole", stage="pretrain")
    assert uses(tmp_path / "whole")["again.png"] == "train"  # no copy of an image that is used
    assert uses(tmp_path / "whole")["again.tif"] == "copy"
    with pytest.raises(KeyboardInterrupt):
        experiment.run(alone, tmp_path / "stopped", stage="pretrain", trackers=[_Stop()])
    experiment.run(alone, tmp_path / "stopped", stage="pretrain")
    tiny.assert_same(tiny.outcome(tmp_path / "whole"), tiny.outcome(tmp_path / "stopped"))
    streamed = config(data, cache, folder, data__feeding="stream", **changes)
    experiment.run(streamed, tmp_path / "streamed", stage="pretrain")
    tiny.assert_same(tiny.outcome(tmp_path / "whole"), tiny.outcome(tmp_path / "streamed"))


class _Stop(tiny.Recorder):
    def log(self, stage, round, step, metrics):
        raise KeyboardInterrupt


@pytest.mark.essential
@pytest.mark.slow
def test_a_field_keeps_what_leaks_and_the_results_say_so(data, cache, folder, tmp_path):
    changes = {"rounds__count": 1, "branches": ("mae",), "pretrain__drop_leaks": False}
    results = experiment.run(config(data, cache, folder, **changes), tmp_path / "run")
    (report,) = results["pretraining_unlabelled"]
    assert report["groups_of"] == {"validation": 1, "test": 1}
    assert results["pretraining_saw_test"] is True


def test_with_folds_each_leaves_out_what_shows_its_own_held_out_images(
    data, cache, finished, folder, tmp_path
):
    changes = {"rounds__kind": "folds", "rounds__count": 3, "branches": ("mae",)}
    experiment.Experiment(config(data, cache, folder, **changes), tmp_path, "pretrain")
    parts = set()
    for index in range(3):
        rows = splits.read(tmp_path / f"round_{index}" / "splits.json")
        part_of = {row["file"]: row["split"] for row in rows}
        found = uses(tmp_path / f"round_{index}")
        for file, part in (("smaller.jpg", "test"), ("mirrored.png", "validation")):
            shown = part_of[first(finished.workdir, part)]
            assert found[file] == ("train" if shown == "train" else "leak")
            parts.add(shown)
    assert parts > {"test"}


def test_what_has_no_effect_is_said(data, cache, folder, tmp_path, caplog):
    unread = config(data, cache, folder, branches=("imagenet",), pretrain__probe_epochs=1)
    experiment.Experiment(unread, tmp_path)
    assert "no effect: pretrain.unlabelled, pretrain.probe_epochs" in caplog.text


def test_changed_images_are_refused_on_resume(data, cache, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    changed = config(data, cache, copy, rounds__count=1, branches=("mae",))
    experiment.run(changed, tmp_path / "run", stage="pretrain")
    (copy / "again.png").unlink()
    with pytest.raises(DataError, match=r"unlabelled\.json: .*again\.png were added, removed"):
        experiment.run(changed, tmp_path / "run", stage="pretrain")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pretrain__unlabelled": ("nowhere",)}, DataError, r"nowhere \(pretrain\.unlabelled\)"),
        ({"pretrain__unlabelled": ("a", "a")}, ConfigError, r"must name folders, each once"),
        ({"pretrain__splits": ()}, ConfigError, r"or be \(\) if pretrain\.unlabelled"),
    ],
)
def test_wrong_folders_are_named(data, cache, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        experiment.run(tiny.make_config(data, cache, **changes), tmp_path / "run")


def test_a_workdir_among_unlabelled_images_is_refused(data, cache, tmp_path):
    (tmp_path / "images").mkdir()
    wrong = config(data, cache, tmp_path / "images")
    with pytest.raises(ConfigError, match=r"is in pretrain\.unlabelled"):
        experiment.run(wrong, tmp_path / "images" / "run")


# --- Groups --------------------------------------------------------------------------------------


def test_patients_link_images_by_their_names_and_by_chains(tmp_path):
    rng = np.random.default_rng(0)

    def write(name, seed=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed) if seed is not None else rng
        PIL.Image.fromarray(pixels.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)

    for name in ("a/001_0.png", "a/002_0.png", "b/003_0.png", "b/004_0.png"):
        write(f"labelled/{name}")
    write("labelled/b/005_0.png", seed=5)
    write("new/1_9.png")  # patient 001 in another spelling
    write("new/006_0.png")
    write("new/x.png", seed=5)  # the image of patient 005, without a name
    listing = list_files("image_folder", tmp_path / "labelled", group_pattern=r"^(\d+)_")
    new = list_files(
        "unlabelled", tmp_path / "new", group_pattern=r"^0*(\d+)_", field="pretrain.unlabelled"
    )
    sets = [
        (each, prepare(each, tmp_path / "cache", on_error="raise", near_duplicate_threshold=0.99))
        for each in (listing, new)
    ]
    groups = common_groups(sets, near_duplicate_threshold=0.99)
    joined = join(sets[0][1], [("new", sets[1][1])])
    by_file = dict(zip(joined.files, groups.tolist(), strict=True))
    assert by_file["new/x.png"] == by_file["b/005_0.png"]
    assert by_file["new/006_0.png"] not in groups[:5]
    assert len(set(groups[:5].tolist())) == 5
    for i, file in enumerate(joined.files):
        path = tmp_path / ("" if file.startswith("new/") else "labelled") / file
        assert np.array_equal(joined.records.pixels(i), np.asarray(PIL.Image.open(path)))
        assert joined.sizes[i].tolist() == [40, 40]


def test_a_folder_with_other_names_needs_no_match_of_the_pattern(tmp_path):
    PIL.Image.new("L", (40, 40)).save(tmp_path / "x.png")
    pattern = {"group_pattern": r"^(\d+)_"}
    assert list_files("unlabelled", tmp_path, **pattern, field="pretrain.unlabelled").images
    with pytest.raises(DataError, match="matches none"):
        list_files("unlabelled", tmp_path, **pattern)
