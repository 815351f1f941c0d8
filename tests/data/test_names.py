"""Names of classes and files that mean something to a terminal, a page or a formula.

They come out as they are, or are refused by a sentence before any work.
"""

import contextlib
import io
import json
import os

import numpy as np
import PIL.Image
import pytest
import rich.console

from egmae_jax.core import console
from egmae_jax.core.files import read_json, write_json
from egmae_jax.data import audit, splits
from egmae_jax.data.datasets import DataError
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.scores import score_branches, summarize
from egmae_jax.explain import lesions
from egmae_jax.explain.lesions_figure import draw_lesions
from egmae_jax.explain.panels import Panels, draw_sheet
from egmae_jax.run import tables
from tests.data.writers import prepare_folder

# What the libraries say of odd files.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NAMES = (
    "<script>alert(1)<",
    "[red]x[bold]",
    "[",
    "]x[",
    "x\\",
    "[link=file:x]y",
    ":cat:",
    ":warning:",
    "$\\frac$",
    "$x$",
    "$",
    "\\$x$ 100 %",
    "%s %d {0} {x}",
    "-rf",
    "--help",
    "'; DROP TABLE x; --",
    '"quoted"',
    "_hidden",
    "😀👩‍⚕️",
    "größer 中文",
    "a\u3000b",
    "~",
    "ensemble",
    "x" * 100,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set with a class of each name, each with two images of names of the same kind."""
    root = tmp_path_factory.mktemp("names")
    rng = np.random.default_rng(0)
    for name in NAMES:
        folder = root / "data" / name
        folder.mkdir(parents=True)
        for file in (f"{name}.png", f"{'y' * 251}.png"):
            PIL.Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).save(folder / file)
    return prepare_(root)


def prepare_(root):
    return prepare_folder("image_folder", root / "data", root / "cache")


def test_names_come_through_preparing_and_splitting_as_they_are(prepared, tmp_path):
    assert prepared.classes == tuple(sorted(NAMES))
    assert {file.split("/")[0] for file in prepared.files} == set(NAMES)
    labels = [prepared.classes[label] for label in prepared.labels]
    parts = np.zeros(len(labels), int)
    path = tmp_path / "splits.json"
    splits.write(path, prepared.files, labels, parts, prepared.groups, prepared.sha256)
    assert [row["label"] for row in splits.read(path)] == labels
    assert [row["file"] for row in splits.read(path)] == list(prepared.files)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2Jx", "x\u2028y"])
def test_control_characters_in_names_are_refused(tmp_path, name):
    for where in ("class", "file"):
        root = tmp_path / where
        for label, file in ((name, "1") if where == "class" else ("cat", name), ("dog", "2")):
            (root / "data" / label).mkdir(parents=True)
            PIL.Image.new("L", (9, 9)).save(root / "data" / label / f"{file}.png")
        with pytest.raises(DataError, match=r"The name of the (file|class) .*control") as caught:
            prepare_(root)
        assert name not in str(caught.value)


@pytest.mark.parametrize("place", [b"m\xe4rz/1.png", b"cat/x.m\xe4rz"])
def test_bytes_that_are_no_text_are_refused_in_any_place(tmp_path, place):
    path = os.path.join(os.fsencode(tmp_path / "data"), place)
    for folder in (os.path.dirname(path), tmp_path / "data" / "dog"):
        os.makedirs(folder)
    with open(path, "w"):
        pass
    with pytest.raises(DataError) as caught:
        prepare_(tmp_path)
    with contextlib.redirect_stderr(io.StringIO()) as output, pytest.raises(SystemExit):
        console.fail(str(caught.value))
    output.getvalue().encode()  # a terminal takes it


# --- Terminals ---------------------------------------------------------------------------------


@contextlib.contextmanager
def terminal(width=300):
    """What is printed, in lists of lines."""
    lines: list[str] = []
    output = io.StringIO()
    before = console.terminal
    console.terminal = rich.console.Console(
        file=output, width=width, emoji=before._emoji, markup=before._markup
    )
    try:
        with contextlib.redirect_stdout(output):
            yield lines
    finally:
        console.terminal = before
        lines += output.getvalue().splitlines()


def results_of(classes):
    count = len(classes)
    labels = np.arange(6 * count) % count
    rng = np.random.default_rng(0)
    test = {
        name: Predictions(
            labels.astype(str),
            labels,
            rng.dirichlet(np.ones(count), 6 * count),
            np.arange(6 * count),
        )
        for name in ("imagenet", "mae")
    }
    scores = score_branches(test, test, classes=classes, resamples=3)
    weights = {name: {k: {"mean": 0.5, "std": 0.1} for k in ("mid", "high")} for name in classes}
    counts = {split: dict.fromkeys(classes, 6) for split in splits.PARTS}
    dataset = {"title": "images", "counts": counts, "protocol": "grouped", "skipped": []}
    dataset["account"] = "36 images found"
    return {
        "dataset": dataset,
        "rounds": [scores],
        "summary": summarize([scores]),
        "summary_by_class": summarize([scores], "by_class"),
        "fusion_weights": {"asff_resnet50": weights},
        "imagenet_weights": {},
        "pretraining_saw_test": False,
    }


def test_the_tables_show_names_as_they_are(tmp_path):
    classes = [*NAMES, "[/]", "[red]x[/]", "[/red]", "[x\\", ":smiley:"]
    results = results_of(classes)
    write_json(tmp_path / "results.json", results)
    assert read_json(tmp_path / "results.json") == json.loads(json.dumps(results))
    with terminal(width=9999) as lines:
        tables.print_results(results)
    for name in classes:  # in the counts, the table of classes, the fusion weights
        assert len([line for line in lines if name.strip() in line]) >= 3, name


def test_a_long_name_does_not_take_the_place_of_the_figures():
    with terminal(width=80) as lines:
        tables.print_results(results_of(["x" * 300, "cat", "dog"]))
    table = lines[next(i for i, line in enumerate(lines) if "PR-AUC" in line) :]
    assert sum(line.count("x") for line in table if "…" not in line) >= 600  # in both tables
    assert not any("…" in line for line in lines)


def test_the_audit_shows_names_as_they_are(prepared, tmp_path, monkeypatch):
    result = audit.save(prepared, tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    with terminal() as lines:
        audit.show(result, tmp_path)
    for name in NAMES:
        assert any(name in line for line in lines), name


# --- Figures and pictures ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.filterwarnings("ignore:constrained_layout")
def test_figures_show_names_as_they_are():
    names = ["$\\frac$", "größer 中文"]
    pixels, patches = np.zeros((32, 32, 3), np.uint8), np.zeros((2, 2))
    panel = Panels(pixels, patches, patches, np.zeros((32, 32, 3)), patches, None, None)
    draw_sheet([panel] * 2, names, note="").savefig(io.BytesIO(), dpi=20)
    measured = {"entropy": dict.fromkeys(lesions.REGIONS, 1.0), "area_share": 0.1}
    shares = ("noise_share", "masked_within", "noise_enrichment", "mask_enrichment")
    measured |= dict.fromkeys(shares, 0.5)
    figure = draw_lesions([{**measured, "label": name} for name in names], "title")
    figure.savefig(io.BytesIO(), dpi=20)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == names
