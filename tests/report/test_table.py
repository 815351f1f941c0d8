"""Tables of made-up predictions: their numbers are results.json's, their names stay names."""

import csv
import html
import json
import re
import shutil

import markdown_it
import numpy as np
import pytest

from egmae_jax import report
from egmae_jax.commands.report import main
from egmae_jax.core.files import write_json
from egmae_jax.data import splits
from egmae_jax.evaluation.metrics import PAPER_METRICS
from egmae_jax.evaluation.predictions import Predictions, save_predictions
from egmae_jax.evaluation.scores import score_branches, summarize
from egmae_jax.run.saved_run import SavedRun
from tests import latex, tiny

CLASSES = ("benign", "malignant", "normal")
EACH = 12  # test images of a class in a round


def make_run(
    workdir, *, rounds=3, kind="seeds", classes=CLASSES, title="BUSI", ids="", seed=0, **changes
):
    """What a table is made of: predictions that are right more often than not, and their scores."""
    config = tiny.make_config("images", "cache", rounds__count=rounds, rounds__kind=kind, **changes)
    write_json(workdir / "config.json", config.to_dict())
    run, rng, folds = SavedRun(workdir), np.random.default_rng(seed), kind == "folds"
    labels = np.repeat(np.arange(len(classes)), EACH)
    names = [branch.name for branch in run.branches]

    def predictions(index):
        files = np.array([f"{ids}{index if folds else 0}/{k}" for k in range(len(labels))])
        p = rng.dirichlet(np.ones(len(classes)), len(labels)) + np.eye(len(classes))[labels] / 3
        groups = np.arange(len(labels)) // 2 + len(labels) * index * folds
        return Predictions(files, labels, p / p.sum(axis=1, keepdims=True), groups)

    counts = dict.fromkeys(splits.PARTS, dict.fromkeys(classes, EACH))
    scored = []
    for index in run.rounds:
        of_each, files = np.arange(len(classes)), [f"{k}.png" for k in range(len(classes))]
        parts = np.full(len(files), splits.PARTS.index("test"))
        splits.write(run.paths.splits(index), files, list(classes), parts, of_each, files)
        validation, test = ({name: predictions(index) for name in names} for _ in range(2))
        for name, branch in test.items():
            save_predictions(run.paths.predictions(name, index, "test"), branch)
        scores = score_branches(
            validation, test, classes=classes, fusion_kind=config.fusion.kind, resamples=9
        )
        of_fold = {"counts": counts} if folds else {}
        sizes = {name: {"parameters": 1} for name in names}
        scored.append({"round": index, "seed": index, "trainable": sizes, **of_fold, **scores})
    dataset = {"name": "busi", "title": title, "classes": classes, "counts": counts}
    results = {
        "config": config.to_dict(),
        "dataset": dataset | {"protocol": config.data.protocol, "skipped": []},
        "pretraining_saw_test": False,
        "pretraining": [{}] if "mae" in names else [],
        "branches": {branch.name: branch.model_name for branch in run.branches},
        "imagenet_weights": {name: "none" for name in names if name != "mae"},
        "imagenet_sha256": {},
        "made_with": {"machines": []},
        "skipped_steps": [],
        "rounds": scored,
        "summary": summarize(scored),
        "summary_by_class": {},
    }
    write_json(workdir / "results.json", results)
    return workdir


def write(suffix, *workdirs):
    out = workdirs[0].parent / f"table.{suffix}"
    report.write_table(workdirs, out)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("table") / "run")


def short(value):
    return f"{value:.3f}".removeprefix("0")


# --- Reading tables -------------------------------------------------------------------------------


def read_latex(text):
    """Caption, rows of cells and notes as they are printed; holds the source to be LaTeX."""
    assert "\\usepackage{booktabs}" in text.splitlines()[0]
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert re.findall(r"\\(?:begin|end)\{(\w+)\}", body) == [
        *("table", "tabular", "tabular", "minipage", "minipage", "table"),
    ]
    caption = re.search(r"^  \\caption\{(.*)\}$", body, re.M)[1]
    tabular = re.search(r"\\begin\{tabular\}\{@\{\}lrrrrr@\{\}\}\n(.*)\\end\{tabular\}", body, re.S)
    lines = [line.strip() for line in tabular[1].splitlines()]
    rules = ("\\toprule", "\\midrule", "\\bottomrule", "\\addlinespace")
    rows = []
    for line in lines:
        if line.startswith("\\multicolumn{6}{@{}l@{}}"):
            rows.append([latex.shown(line.removeprefix("\\multicolumn{6}{@{}l@{}}")[:-3])])
        elif line and line not in rules:
            assert line.endswith(" \\\\")
            rows.append([latex.shown(x).strip() for x in re.split(r"(?<!\\)&", line[:-3])])
            assert len(rows[-1]) == 6
    notes = re.search(r"\\raggedright\n(.*)  \\end\{minipage\}", body, re.S)[1]
    return latex.shown(caption), rows, " ".join(latex.shown(notes).split())


def read_markdown(text):
    """Caption, rows of cells and notes as they are shown, and what is bold."""
    page = markdown_it.MarkdownIt("commonmark").enable("table").render(text)
    assert not set(re.findall(r"<(\w+)", page)) - {
        *("table", "thead", "tbody", "tr", "th", "td", "p", "strong"),
    }
    rows = [
        [
            html.unescape(re.sub("</?strong>", "", cell))
            for cell in re.findall("<t[hd]>(.*?)</t", row)
        ]
        for row in re.findall("<tr>(.*?)</tr>", page, re.S)
    ]
    caption, *notes = (html.unescape(x) for x in re.findall("<p>(.*?)</p>", page, re.S))
    return caption, rows, " ".join(notes)


def read_csv(text):
    return list(csv.DictReader(text.splitlines(keepends=True)))


# --- Numbers --------------------------------------------------------------------------------------


def test_numbers_are_those_of_results_json(made):
    summary = json.loads((made / "results.json").read_text())["summary"]
    assert list(summary) == ["imagenet", "mae", "ensemble"]
    expected = [
        [name] + [f"{short(row[m]['mean'])} ± {short(row[m]['std'])}" for m in PAPER_METRICS]
        for name, row in summary.items()
    ]
    head = ["Classifier", "Accuracy", "Precision", "Recall", "F1", "AUC"]
    _, rows, _ = read_latex(write("tex", made))
    assert [rows[0], *rows[1::2]] == [head, *expected]
    assert read_markdown(write("md", made))[1] == [head, *expected]
    written = read_csv(write("csv", made))
    for line, (name, row), limits in zip(written, summary.items(), rows[2::2], strict=True):
        assert (line["run"], line["classifier"]) == ("run", name)
        for metric, cell in zip(PAPER_METRICS, limits[1:], strict=True):
            assert float(line[metric]) == row[metric]["mean"]
            assert float(line[f"{metric}_std"]) == row[metric]["std"]
            low, high = (float(line[f"{metric}_{end}"]) for end in ("low", "high"))
            assert low < row[metric]["mean"] < high
            assert cell == f"[{short(low)}, {short(high)}]"


def bold(text):
    return re.findall(r"(?:\\textbf\{|\*\*)([\d.]+)(?:\}|\*\*)", text)


def test_the_best_of_each_column_is_bold(made):
    summary = json.loads((made / "results.json").read_text())["summary"]
    best = [short(max(row[m]["mean"] for row in summary.values())) for m in PAPER_METRICS]
    assert sorted(bold(write("tex", made))) == sorted(bold(write("md", made))) == sorted(best)


def test_what_reads_like_the_best_is_bold_too(made, tmp_path):
    workdir = shutil.copytree(made, tmp_path / "run")
    results = json.loads((workdir / "results.json").read_text())
    for row, mean in zip(results["summary"].values(), (0.99941, 0.99939, 0.9994), strict=True):
        row["auc"]["mean"] = mean
    write_json(workdir / "results.json", results)
    assert bold(write("md", workdir)).count(".999") == 3


# --- What a reader must know ----------------------------------------------------------------------

# Of a run: how it differs, its caption's end, a sentence of its notes, and facts of its CSV.
RUNS = {
    "seeds": (
        {},
        "BUSI, mean ± standard deviation over 3 seeds.",
        "Few groups of test images: 18 (benign 6, malignant 6, normal 6).",
        {
            **{"dataset": "BUSI", "test_images": "36", "test_groups": "18", "classes": "3"},
            **{"split_protocol": "grouped", "rounds": "3", "rounds_kind": "seeds"},
            **{"averages": "macro", "pretraining_saw_test": "false"},
            **{"model": "convnext_test", "started_from": "random weights"},
        },
    ),
    "folds": (
        {"rounds": 4, "kind": "folds"},
        "BUSI, mean ± standard deviation over 4 folds.",
        "",
        {"test_images": "144", "rounds": "4", "rounds_kind": "folds"},
    ),
    "one round of official parts": (
        {
            **{"rounds": 1, "branches": ("mae",), "data__protocol": "official"},
            "classes": tuple(f"class {k:02}" for k in range(11)),
        },
        "BUSI, one round.",
        "One round (seed 0), so the spread over seeds is unknown.",
        {"accuracy_std": "", "split_protocol": "official"},
    ),
}


@pytest.mark.parametrize(("changes", "end", "sentence", "facts"), RUNS.values(), ids=RUNS)
def test_notes_say_how_figures_came_about(tmp_path, changes, end, sentence, facts):
    workdir = make_run(tmp_path / "run", **changes)
    caption, rows, notes = read_markdown(write("md", workdir))
    assert caption == f"Results on the test images of {end}"
    assert sentence in notes
    one = "one round" in caption
    assert any("±" in cell for row in rows for cell in row) is not one
    assert ("is bold" in notes) is not ("mae" in changes.get("branches", ()))
    assert facts.items() <= read_csv(write("csv", workdir))[0].items()


def test_what_flatters_is_said(tmp_path):
    workdir = make_run(
        tmp_path / "run",
        branches=("imagenet", "mae", tiny.RESNET),
        data__protocol="image_level",
        fusion__kind="stacked",
        pretrain__splits=("train", "test"),
    )

    results = json.loads((workdir / "results.json").read_text())
    results["pretraining_saw_test"] = True
    results["imagenet_weights"]["imagenet"] = "/home/me/weights/convnext.npz"
    results["dataset"]["skipped"] = ["x.png"]
    write_json(workdir / "results.json", results)
    text = write("tex", workdir)
    _, _, notes = read_latex(text)
    assert "Pre-training saw the test images (without their labels)." in notes
    assert "Pre-training saw no test image" not in notes
    assert "Images were split one by one (data.protocol='image_level')" in notes
    assert "imagenet is convnext_test from convnext.npz; mae is convnext_test from " in notes
    assert "from pre-training on the train and test images; ensemble is a logistic" in notes
    assert "resnet_test started from random weights instead of ImageNet's" in notes
    assert "Unreadable images that were left out: 1." in notes
    assert "95 % intervals by a bootstrap of the groups of test images" in notes
    assert "home" not in text
    row = read_csv(write("csv", workdir))[0]
    assert (row["pretraining_saw_test"], row["split_protocol"]) == ("true", "image_level")
    assert row["started_from"] == "convnext.npz"


# --- Several runs ---------------------------------------------------------------------------------


def test_runs_are_grouped_told_apart_and_compared(made, tmp_path):
    first, second = tmp_path / "a" / "run", tmp_path / "b" / "run"
    shutil.copytree(made, first)
    make_run(second, branches=("mae",), rounds=2, seed=1)
    folders = [json.loads((x / "results.json").read_text())["summary"] for x in (first, second)]
    best = [max(row[m]["mean"] for x in folders for row in x.values()) for m in PAPER_METRICS]
    caption, rows, notes = read_latex(write("tex", first, second))
    assert caption.endswith("of BUSI, mean ± standard deviation over the rounds of a run.")
    assert [row[0] for row in rows if row[0]] == [
        *("Classifier", "a/run", "imagenet", "mae", "ensemble", "b/run", "mae"),
    ]
    shared, *own = re.split(r" (?=Run [ab]/run: )", notes)
    assert "36 test images" in shared
    assert "3 rounds (seeds 0 to 2)" in own[0]
    assert "2 rounds (seeds 0 to 1)" in own[1]
    assert "started from random weights" in own[0]
    assert "started from random weights" not in own[1] + shared
    text = write("md", first, second)
    assert sorted(bold(text)) == sorted(map(short, best))
    assert [row[:2] for row in read_markdown(text)[1]] == [
        ["Run", "Classifier"],
        *(["a/run", name] for name in ("imagenet", "mae", "ensemble")),
        ["b/run", "mae"],
    ]
    assert [row["run"] for row in read_csv(write("csv", first, second))] == [
        *(["a/run"] * 3),
        "b/run",
    ]


def test_runs_on_other_images_have_a_best_each(made, tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    shutil.copytree(made, first)
    make_run(second, ids="other", title="ISIC: 2018", seed=2)
    text = write("tex", first, second)
    caption, _, notes = read_latex(text)
    assert caption.startswith("Results on the test images of several data sets, mean ")
    assert len(bold(text)) >= 10
    assert "bold within a run, as not all runs were tested on the same images;" in notes
    assert notes.endswith("Run one: BUSI. Run two: ISIC: 2018.")


# --- Names ----------------------------------------------------------------------------------------

HOSTILE = (
    "_&%$#{}~^\\",
    r"- \input{/etc/passwd} % $x^2$ & \\",
    '**b** | [x](y) `c` <b> ~~d~~ "e" --- !@#',
)


def test_names_stay_names(tmp_path):
    first, second = (tmp_path / name.replace("/", "") for name in HOSTILE[:2])
    title = 'a_b & 50 % of $c$ {d} #1 ~^\\ | <i> "x" [y]*'
    make_run(first, classes=HOSTILE, title=title, rounds=2)
    make_run(second, classes=HOSTILE, title=title, rounds=1)
    names = [first.name, second.name]
    listed = f"36 test images ({', '.join(f'{name} 12' for name in HOSTILE)}) in 18 groups."
    caption, rows, notes = read_latex(write("tex", first, second))
    assert title in caption
    assert [row[0] for row in rows if len(row) == 1] == names
    assert all(x in notes for x in (listed, *(f"Run {name}: " for name in names)))
    caption, rows, notes = read_markdown(write("md", first, second))
    assert title in caption
    assert [row[0] for row in rows[1:]] == [names[0]] * 3 + [names[1]] * 3
    assert all(x in notes for x in (listed, *(f"Run {name}: " for name in names)))
    lines = read_csv(write("csv", first, second))
    assert [line["run"] for line in lines] == [names[0]] * 3 + [names[1]] * 3
    assert {line["dataset"] for line in lines} == {title}


# --- The command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["md", "TEX"])
def test_the_command_writes_the_table_instead_of_the_page(made, tmp_path, capsys, suffix):
    workdir, out = tmp_path / "run", tmp_path / "new" / f"my_table.{suffix}"
    shutil.copytree(made, workdir)
    main([f"--workdir={workdir}", f"--table={out}"])
    assert f"Written to {out}" in capsys.readouterr().out
    assert not (workdir / "report.html").exists()
    if suffix.lower() == "tex":
        assert "\\label{tab:my-table}" in out.read_text()


def test_another_suffix_is_refused_before_any_work(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([f"--workdir={tmp_path / 'nowhere'}", f"--table={tmp_path / 'table.html'}"])
    error = " ".join(capsys.readouterr().err.split())
    assert "must end in .tex or .md or .csv" in error
    assert list(tmp_path.iterdir()) == []
