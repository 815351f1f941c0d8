"""Names of classes and files that mean something to a terminal, a page or a formula.

They come out as they are, or are refused by a sentence before any work.
"""

import contextlib
import io
import json
import logging
import os
import re

import numpy as np
import PIL.Image
import pytest
import rich.console
from hypothesis import example, given
from hypothesis import strategies as st

from egmae_jax.core import console
from egmae_jax.core.files import DamagedFileError, natural_key, read_json, write_json
from egmae_jax.data import audit, splits
from egmae_jax.data.datasets import DataError
from egmae_jax.data.prepare import prepare
from egmae_jax.evaluation.predictions import Predictions, save_predictions
from egmae_jax.evaluation.scores import score_branches, summarize, summarize_classes
from egmae_jax.explain import cam_scores, lesions, noise
from egmae_jax.explain.lesions_figure import draw_lesions
from egmae_jax.explain.overlay import Row, contact_sheet
from egmae_jax.explain.panels import Panels, draw_sheet
from egmae_jax.run import results, tables

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
NAME = st.sampled_from(NAMES) | st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"), exclude_characters="/"),
    min_size=1,
    max_size=20,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A folder a name, each with two images of names of the same kind."""
    root = tmp_path_factory.mktemp("names")
    rng = np.random.default_rng(0)
    for name in NAMES:
        folder = root / "data" / name
        folder.mkdir(parents=True)
        for file in (f"{name}.png", f"{'y' * 251}.png"):
            PIL.Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).save(folder / file)
    return root


@pytest.fixture(scope="module")
def prepared(tree):
    return prepare_(tree)


def prepare_(root, name="image_folder"):
    options = {"on_error": "raise", "near_duplicate_threshold": 0.99}
    return prepare(name, root / "data", root / "cache", **options)


def test_names_come_through_preparing_and_splitting_as_they_are(prepared, tmp_path):
    assert prepared.classes == tuple(sorted(NAMES))
    assert {file.split("/")[0] for file in prepared.files} == set(NAMES)
    labels = [prepared.classes[label] for label in prepared.labels]
    parts = np.zeros(len(labels), int)
    path = tmp_path / "splits.json"
    splits.write(path, prepared.files, labels, parts, prepared.groups, prepared.sha256)
    assert [row["label"] for row in splits.read(path)] == labels
    assert [row["file"] for row in splits.read(path)] == list(prepared.files)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\x1b[2Jx", "x\u2028y", "bell\a", "tab\tx"])
def test_control_characters_in_names_are_refused(tmp_path, name):
    for where in ("class", "file"):
        root = tmp_path / where
        for label, file in ((name, "1") if where == "class" else ("cat", name), ("dog", "2")):
            (root / "data" / label).mkdir(parents=True)
            PIL.Image.new("L", (9, 9)).save(root / "data" / label / f"{file}.png")
        with pytest.raises(DataError, match=r"The name of the (file|class) .*control") as caught:
            prepare_(root)
        assert name not in str(caught.value)


def test_bytes_that_are_no_text_are_refused_in_any_place(tmp_path, caplog):
    for k, place in enumerate((b"m\xe4rz/1.png", b"cat/m\xe4rz.png", b"cat/x.m\xe4rz")):
        root = tmp_path / str(k)
        (root / "data" / "cat").mkdir(parents=True)
        path = os.path.join(os.fsencode(root / "data"), place)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w"):
            pass
        (root / "data" / "dog").mkdir(exist_ok=True)
        with pytest.raises(DataError) as caught:
            prepare_(root)
        with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit):
            console.fail(str(caught.value))
        said.getvalue().encode()  # a terminal takes it
    caplog.text.encode()


def test_a_class_of_a_manifest_with_a_line_break_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    for k in (1, 2):
        PIL.Image.new("L", (9, 9)).save(tmp_path / "data" / f"{k}.png")
    (tmp_path / "data" / "manifest.csv").write_text('path,label\n1.png,"a\nb"\n2.png,dog\n')
    with pytest.raises(DataError, match=r"The name of the class 'a\\nb' holds a line break"):
        prepare_(tmp_path, "manifest")


# --- Terminals ---------------------------------------------------------------------------------


@contextlib.contextmanager
def terminal(width=300):
    """What is printed, in lists of lines."""
    lines: list[str] = []
    output = io.StringIO()
    before = console.terminal
    console.terminal = rich.console.Console(file=output, width=width, emoji=before._emoji)
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
    return {
        "dataset": dataset,
        "rounds": [scores],
        "summary": summarize([scores]),
        "summary_by_class": summarize_classes([scores]),
        "fusion_weights": {"asff_resnet50": weights},
        "imagenet_weights": {},
        "pretraining_saw_test": False,
    }


def test_the_tables_show_names_as_they_are(tmp_path):
    classes = [*NAMES, "[/]", "[red]x[/]", "[/red]", "[x\\", ":smiley:"]
    found = results_of(classes)
    write_json(tmp_path / "results.json", found)
    assert read_json(tmp_path / "results.json") == json.loads(json.dumps(found))
    with terminal(width=9999) as lines:
        tables.print_results(found)
    for name in classes:  # in the counts, the table of classes, the fusion weights
        assert len([line for line in lines if name.strip() in line]) >= 3, name


def test_a_long_name_does_not_take_the_place_of_the_figures():
    with terminal(width=80) as lines:
        tables.print_results(results_of(["x" * 300, "cat", "dog"]))
    table = lines[next(i for i, line in enumerate(lines) if "PR-AUC" in line) :]
    assert sum(line.count("x") for line in table if "…" not in line) >= 600  # in both tables
    assert not any("…" in line for line in lines)


@given(st.text(st.characters(exclude_categories=()), max_size=30))
@example("[/]")
@example("\\[/]\\")
@example("\x1b]0;title\x07")
@example("m\udce4rz :cat:")
def test_errors_are_told_as_they_are_but_for_control_characters(message):
    with contextlib.redirect_stderr(io.StringIO()) as output, pytest.raises(SystemExit):
        console.fail(message)
    said = output.getvalue()
    assert "\x1b]" not in said.replace("\x1b[", "")
    if message.isprintable():
        assert f"Error: {message}" in said.replace("\x1b[1;31m", "").replace("\x1b[0m", "")


def test_log_lines_are_no_markup(monkeypatch):
    project = logging.getLogger("egmae_jax")
    for name in ("handlers", "propagate", "level"):  # as they were, for the tests that follow
        monkeypatch.setattr(project, name, getattr(project, name))
    for is_terminal in (True, False):
        output = io.StringIO()
        printed = rich.console.Console(file=output, force_terminal=is_terminal, emoji=False)
        monkeypatch.setattr(console, "terminal", printed)
        monkeypatch.setattr("sys.stdout", output)
        console.set_up_logging()
        logging.getLogger("egmae_jax.x").warning("left out: %s", "[/] :cat: [red]")
        assert "[/] :cat: [red]" in re.sub(r"\x1b\[[\d;]*m", "", output.getvalue())


def test_the_audit_shows_names_as_they_are(prepared, tmp_path):
    found = audit.save(prepared, tmp_path)
    with terminal() as lines:
        os.environ["COLUMNS"], before = "300", os.environ.get("COLUMNS")
        try:
            audit.show(found, tmp_path)
        finally:
            os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    for name in NAMES:
        assert any(name in line for line in lines), name


def test_explanations_show_names_as_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "300")
    means = {"images": 2, **dict.fromkeys(cam_scores.SCORES, 0.5)}
    left_out = {"without_lesion": 0, "unusable_masks": ["[/]"]}
    groups = {"all": means, "right": means, "wrong": means, "left_out": left_out}
    content = {
        **{"model": "resnet18", "branch": "mae", "round": 0, "images": 2, "right": 1},
        **{"layer": "layer4", "grid": [7, 7], "part": ""},
        "masks": {**groups, "by_class": dict.fromkeys(NAMES, means)},
    }
    number = {"mean": 0.5, "std": 0.1}
    row = {"images": 2, **dict.fromkeys(("entropy", "noise_variance", "masked_share"), number)}
    lesion = {
        "images": 2,
        "entropy": dict.fromkeys(lesions.REGIONS, number),
        **{"noise_enrichment": {**number, "p": 0.1}, "mask_enrichment": {**number, "p": 0.1}},
    }
    maps = {
        "images": {"all": row, "by_class": dict.fromkeys(NAMES, row)},
        "lesions": {"all": lesion, "by_class": dict.fromkeys(NAMES, lesion)},
    }
    for show in (lambda: cam_scores.show(content, tmp_path), lambda: noise.show(maps)):
        with terminal() as lines:
            show()
        for name in NAMES:
            assert any(name in line for line in lines), name


# --- Figures and pictures ----------------------------------------------------------------------

PIXELS = np.zeros((32, 32, 3), np.uint8)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.filterwarnings("ignore:constrained_layout")
def test_figures_show_names_as_they_are(tmp_path):
    names = ("$\\frac$", "\\$x$ 100 %", "größer 中文", "x" * 100)
    rows = [Row(PIXELS, np.zeros((32, 32)), None, name, name, name, 0.5) for name in names]
    contact_sheet(rows, tmp_path / "sheet.png", note="")
    patches = np.zeros((2, 2))
    panel = Panels(PIXELS, patches, patches, np.zeros((32, 32, 3)), patches, None, None)
    sheet = draw_sheet([panel] * len(names), [f"{name}\n{name}" for name in names], note="")
    sheet.savefig(io.BytesIO(), dpi=20)
    regions = dict.fromkeys(lesions.REGIONS, 1.0)
    measured = {"entropy": regions, "area_share": 0.1}
    measured |= dict.fromkeys(("noise_share", "masked_within"), 0.5)
    figure = draw_lesions([{**measured, "label": name} for name in NAMES], "title")
    figure.savefig(io.BytesIO(), dpi=20)
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == sorted(NAMES)


def test_numbers_in_names_sort_only_where_they_are_numbers():
    files = ["a²1.png", "²1.png", "a\u0663.png", "a (10).png", "a (2).png", "①.png"]
    ordered = sorted(files, key=natural_key)
    assert ordered.index("a (2).png") + 1 == ordered.index("a (10).png")


# --- Predictions of other images ---------------------------------------------------------------


class Data:
    """What `results` asks of a run's data."""

    class prepared:
        files = ("a", "b", "c")
        labels = np.array([0, 1, 0])
        classes = ("x", "y")
        groups = np.array([3, 3, 1])

    @staticmethod
    def indices(round_index, split):
        return np.array([0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.array(["b", "a"])}, "its images are not those of the test part"),
        ({"labels": np.array([1, 0])}, "its labels are not those of its images"),
        ({"probabilities": np.eye(2, 3)}, "of 3 classes, not 2"),
    ],
)
def test_predictions_of_other_images_are_not_scored(tmp_path, changes, message):
    class Run:
        data = Data

        class paths:
            @staticmethod
            def predictions(*_):
                return tmp_path / "p.npz"

    good = Predictions(np.array(["a", "b"]), np.array([0, 1]), np.eye(2), np.arange(2))
    save_predictions(tmp_path / "p.npz", good)
    assert results._predictions(Run, "mae", 0, "test").ids.tolist() == ["a", "b"]
    save_predictions(tmp_path / "p.npz", good._replace(**changes))
    with pytest.raises(DamagedFileError, match=rf"p\.npz is damaged \({message}"):
        results._predictions(Run, "mae", 0, "test")
