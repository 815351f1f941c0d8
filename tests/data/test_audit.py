"""The audit finds what is wrong with a data set."""

import dataclasses
import json

import numpy as np
import pytest

from egmae_jax.commands import audit as command
from egmae_jax.data import audit, contact_sheets
from egmae_jax.data.contact_sheets import Section
from tests.data.writers import picture, prepare_folder


def prepared(folder, **options):
    cache = folder.parent / "cache"
    return prepare_folder("image_folder", folder, cache, on_error="skip", **options)


@pytest.fixture
def flawed(tmp_path):
    """Two classes: a copy within one, a copy across both, one unreadable; grey tells the class."""
    folder = tmp_path / "data"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for k in range(10):
            image = picture(k + 100 * (label == "dog"), (40, 40))
            image = image.convert("L") if label == "dog" else image
            image.save(folder / label / f"{k}.png")
    picture(0, (40, 40)).save(folder / "cat" / "copy.bmp")
    picture(1, (40, 40)).save(folder / "dog" / "crossing.png")
    (folder / "dog" / "broken.png").write_bytes(b"no image")
    return folder


def test_every_flaw_is_found(flawed):
    result = audit.audit(prepared(flawed))
    assert result["images"] == 22
    assert [text.split()[0] for text in result["unreadable"]] == ["dog/broken.png"]
    assert result["counts"] == {"none": {"cat": 11, "dog": 11}}
    assert result["identical_pixels"] == {
        "groups": 2,
        "extra_copies": 2,
        "groups_across_folders": 1,
        "groups_across_classes": 1,
        "groups_across_official_parts": 0,
    }
    near = result["near_duplicates"]
    assert near["pairs"] == 2
    assert near["groups"] == 2
    assert near["largest_group"] == 2
    assert near["conflicts"] == [["cat/1.png", "dog/crossing.png"]]
    assert near["members"] == [["cat/1.png", "dog/crossing.png"], ["cat/0.png", "cat/copy.bmp"]]
    assert sorted(near["listed"]) == sorted(near["members"])
    assert result["groups"] == {
        **{"number": 20, "of_one": 18, "of_several": 2, "images_of_several": 4, "largest": 2}
    }
    assert result["modes"] == {"cat": {"RGB": 11}, "dog": {"L": 10, "RGB": 1}}
    assert result["sizes"]["most_frequent"] == {"40x40": 22}
    assert result["confounders"]["chance"] == 0.5
    assert result["confounders"]["mode"] > 0.9
    assert result["confounders"]["size"] == pytest.approx(0.5)
    about = {each["about"]: each for each in result["findings"]}
    assert list(about)[:4] == ["unreadable", "labels", "mode", "near-duplicates"]
    assert "dog/broken.png" in about["unreadable"]["finding"]
    assert "cat/1.png and dog/crossing.png" in about["labels"]["finding"]
    for name, field in {
        "unreadable": "on_error=skip",
        "labels": "on_conflict=drop",
        "mode": "color=grey",
        "near-duplicates": "deduplicate=True",
        "patients": "group_pattern",
    }.items():
        assert f"--config.data.{field}" in about[name]["advice"]


def test_the_command_prints_and_saves(flawed, tmp_path, capsys):
    (tmp_path / "audit").mkdir()
    for old in ("near_duplicates_07.png", "mine.png"):
        (tmp_path / "audit" / old).write_bytes(b"of an earlier audit")
    command.main(
        [
            "--config=configs/image_folder.py",
            "--config.data.image_size=200",  # no multiple of a network's stride
            f"--config.data.dir={flawed}",
            f"--config.data.cache_dir={tmp_path / 'cache'}",
            f"--out={tmp_path / 'audit'}",
        ]
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "different labels: 1, such as cat/1.png and dog/crossing.png." in printed
    assert "The mode alone predicts the class: balanced accuracy" in printed
    assert "-> --config.data.color=grey converts all images" in printed
    assert "2 of several images" in printed
    saved = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert saved["near_duplicates"]["pairs"] == 2
    assert saved["sheets"] == ["classes_01.png", "near_duplicates_01.png"]
    left = {path.name for path in (tmp_path / "audit").iterdir()}
    assert left == {"audit.json", "mine.png", *saved["sheets"]}


def test_images_of_a_group_are_in_one_fold_where_confounders_are_looked_for(tmp_path):
    """Each patient has a size of its own: it tells who it is, and nothing of the class."""
    folder = tmp_path / "data"
    for patient in range(20):
        label = ("cat", "dog")[patient % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        side = 40 + np.random.default_rng(patient).permutation(200)[0]
        for k in range(4):
            seed = 100 * patient + k
            picture(seed, (side, side)).save(folder / label / f"p{patient:02}_{k}.png")
    known = prepared(folder, group_pattern=r"(p\d+)_")
    result = audit.audit(known)
    scores = result["confounders"]
    # An image's own patient tells its class where it is among those that are learned from.
    unknown = dataclasses.replace(known, groups=np.arange(len(known.labels)))
    assert audit.confounders(unknown)["size"] > 0.9
    assert abs(scores["size"] - 0.5) < 0.35
    error = np.sqrt(2 * 0.25 / 10) / 2  # of ten groups a class
    assert scores["threshold"] == pytest.approx(0.5 + 2 * error)
    assert not [x for x in result["findings"] if x["about"] in ("size", "patients")]


def test_a_class_of_one_group_has_nothing_to_be_tested_on(flawed):
    data = prepared(flawed)
    groups = np.where(data.labels == 0, 0, data.groups + 1)
    lonely = dataclasses.replace(data, groups=groups)
    assert audit.confounders(lonely) == {}
    (finding,) = [x for x in audit.audit(lonely)["findings"] if x["about"] == "confounders"]
    assert "the images of cat are one group" in finding["finding"]


def test_a_class_without_a_readable_image_is_named(flawed):
    (flawed / "eel").mkdir()
    (flawed / "eel" / "broken.png").write_bytes(b"no image")
    findings = {x["about"]: x["finding"] for x in audit.audit(prepared(flawed))["findings"]}
    assert findings["empty classes"] == "Classes without an image that can be read: eel."
    assert not {"imbalance", "confounders"} & findings.keys()
    assert "eel" not in findings["few images"]


def test_unequal_and_small_classes_are(tmp_path):
    for label, count in (("cat", 60), ("dog", 12)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for k in range(count):
            picture(k + 100 * (label == "dog")).save(tmp_path / "data" / label / f"{k}.png")
    findings = {
        x["about"]: x["finding"] for x in audit.audit(prepared(tmp_path / "data"))["findings"]
    }
    assert "60 images of cat, but 12 of dog, 5.0 times fewer" in findings["imbalance"]
    assert "Always predicting cat has accuracy 0.833" in findings["imbalance"]
    assert findings["few images"].startswith("dog has 12 groups")


def test_groups_across_official_parts_are_with_what_they_cost(flawed):
    data = prepared(flawed)
    test = np.isin(data.files, ["cat/0.png", "dog/9.png"])
    parted = dataclasses.replace(data, official=np.where(test, "test", "train"))
    (finding,) = [x for x in audit.audit(parted)["findings"] if x["about"] == "leaks"]
    # cat/copy.bmp is cat/0.png again.
    assert "in several official parts: 1; 1 of their images are in training" in finding["finding"]
    assert "data.drop_leaks" in finding["advice"]


def test_pages_are_of_bounded_size_and_hold_everything(flawed, monkeypatch):
    data = prepared(flawed)
    sections = [Section(f"{k}", [k % 22, (k + 1) % 22]) for k in range(100)]
    sections += [Section("long", list(range(20)))]
    tiles = []
    draw = contact_sheets._draw_tile
    monkeypatch.setattr(contact_sheets, "_draw_tile", lambda *x: tiles.append(x[2]) or draw(*x))
    pages = list(contact_sheets.pages(data, sections))
    assert tiles == [index for section in sections for index in section.indices]
    # Four pairs a row, 25 rows, and 20 images in three more; ten rows a page.
    assert len(pages) == 3
    assert all(page.width <= 1300 and page.height <= 2300 for page in pages)
    monkeypatch.setattr(contact_sheets, "_MAX_PAGES", 2)
    assert len(list(contact_sheets.pages(data, sections))) == 2


def test_names_are_shortened_in_the_middle_to_what_fits():
    assert contact_sheets.fit_text("a" * 30 + "_007.png", 8, 2) == ["aaaaaaaa", "…007.png"]
    assert contact_sheets.fit_text("short.png", 8, 2) == ["short.pn", "g"]
