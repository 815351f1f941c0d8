"""The page of a tiny run whose classes and files are called like HTML, and of two runs."""

import html.parser
import itertools
import json
import re
import shutil

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from egmae_jax import experiment, report
from egmae_jax.commands.report import main
from egmae_jax.core import console
from egmae_jax.core.files import DamagedFileError, read_json
from egmae_jax.deploy.predictor import Predictor
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.report import content, figures, formats, pictures, published
from egmae_jax.report.complexity import of_network
from egmae_jax.run import saved_run
from egmae_jax.run.saved_run import RunError, SavedRun
from tests import tiny
from tests.conftest import REPOSITORY
from tests.report.conftest import OVERFLOW

CLASSES = {
    "benign": '<script>alert("a")<script>',
    "malignant": "\"><img src=x onerror='b()'>",
    "normal": "{{ 7 * 7 }} $x^2$ & <b>",
}
VOID = {"meta", "img", "br", "path", "use", "rect", "circle"}


@pytest.fixture(scope="module")
def made(data, cache, tmp_path_factory):
    """Workdir and images of a run of two rounds; its report is written by the run."""
    folder = tmp_path_factory.mktemp("hostile")
    images = folder / "images"
    for name, label in CLASSES.items():
        shutil.copytree(data / name, images / label)
        for k, path in enumerate(sorted((images / label).glob("*.png"))):
            path.rename(path.with_name(f"<i>{k}<i> {path.name}"))
    config = tiny.make_config(images, cache, evaluation__report=True)
    experiment.run(config, folder / "run")
    return folder / "run", images


@pytest.fixture(autouse=True)
def _logging_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(console, "set_up_logging", lambda: None)  # global


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, and the text; asserts that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def read(made):
    return Page((made[0] / "report.html").read_text())


def test_names_that_are_html_stay_names(made, read):
    raw = (made[0] / "report.html").read_text()
    text = " ".join(read.text)
    for name in CLASSES.values():
        assert name in text
        assert name not in raw
    known = {"html", "head", "body", "title", "style", "meta", "svg", "g", "path", "use", "defs"}
    known |= {"text", "tspan", "clippath", "rect", "header", "section", "nav", "figure", "pre"}
    known |= {"h1", "h2", "h3", "p", "a", "b", "ul", "li", "dl", "dt", "dd", "table", "caption"}
    known |= {"thead", "tbody", "tr", "th", "td", "small", "div", "figcaption", "img", "br"}
    known |= {"details", "summary", "code", "span"}
    assert {tag for tag, _ in read.tags} <= known
    assert not [name for _, attributes in read.tags for name in attributes if name[:2] == "on"]
    assert "49" not in re.sub(r"[\d.]{3,}", "", text)  # nothing was computed
    alt = [x["aria-label"] for x in read.of("svg")]
    assert any(CLASSES["malignant"] in x for x in alt)


def test_the_page_needs_no_network_and_is_told_so(read):
    for tag, attributes in read.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:image/webp;base64,")), tag
    policy = read.of("meta")[2]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert "default-src 'none'" in policy["content"]
    raw = "".join(read.text)
    assert "@import" not in raw
    assert "url(http" not in raw


def test_links_lead_somewhere_and_names_are_given_once(read):
    names = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(set(names)) == len(names)
    for tag in ("a", "use"):
        for attributes in read.of(tag):
            target = attributes.get("href") or attributes["xlink:href"]
            assert target[1:] in names


def test_all_pictures_are_described(read):
    assert len(read.of("svg")) >= 3 + 3 + 3 + 5
    assert all(x["role"] == "img" and len(x["aria-label"]) > 30 for x in read.of("svg"))
    assert len(read.of("img")) >= 5
    assert all(len(x["alt"]) > 10 for x in read.of("img"))


def test_the_page_says_what_results_json_does(made, read):
    results = json.loads((made[0] / "results.json").read_text())
    text = " ".join("".join(read.text).split())
    for metrics in results["summary"].values():
        for name in content.METRICS:
            mean, std = metrics[name]["mean"], metrics[name]["std"]
            assert f"{formats.number(mean)} ± {formats.number(std)}" in text
    assert "imagenet started from random weights instead of ImageNet's" in text
    assert results["made_with"]["versions"]["jax"] in text
    commit = results["made_with"]["commit"]
    assert commit is None or f"commit {commit}" in text
    assert "Pre-training saw test images no" in " ".join(" ".join(read.text).split())
    for field in ("learning_rate", "split_seed", "near_duplicate_threshold"):
        assert field in text
    audit = json.loads((made[0] / "audit.json").read_text())
    assert audit["images"] == 36
    assert f"{audit['near_duplicates']['pairs']} pairs in" in text


def test_without_images_the_page_says_so(made, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(made[0], moved)
    status = main([f"--workdir={moved}", "--data_dir=nowhere", f"--out={tmp_path / 'r.html'}"])
    assert status == 0
    found = Page((tmp_path / "r.html").read_text())
    assert not found.of("img")
    assert "There is no folder nowhere" in " ".join(found.text)
    assert "Written to" in capsys.readouterr().out


def test_other_images_of_the_same_names_are_not_drawn(made, tmp_path):
    images = shutil.copytree(made[1], tmp_path / "images")
    for path in images.rglob("*.png"):
        PIL.ImageOps.invert(PIL.Image.open(path).convert("L")).save(path)
    out = tmp_path / "r.html"
    assert main([f"--workdir={made[0]}", f"--data_dir={images}", f"--out={out}"]) == 0
    found = Page(out.read_text())
    assert not found.of("img")
    assert "is not the file that the run was trained on" in " ".join(found.text)


def test_learning_curves_are_of_the_whole_lines_of_the_log(made, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(made[0], workdir)
    before = content.Content(SavedRun(workdir), None).learning_curves
    assert len(before) == 5  # pre-training has no scores
    whole = {"stage": "pretrain", "round": 0, "step": 9, "loss": 7.0}
    odd = [{}, {"epoch": "x"}, {"epoch": None}, {"epoch": 9, "stage": ["pretrain"]}]
    with (workdir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(whole | x) + "\n" for x in odd)
        file.write(json.dumps({"stage": "pretrain", "epoch": 1}) + "\n")
        file.write(json.dumps(whole | {"epoch": 9})[:-3])
    assert content.Content(SavedRun(workdir), None).learning_curves == before


def test_two_runs_are_compared(made, tmp_path):
    workdir, _ = made
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    config = json.loads((other / "config.json").read_text())
    results = json.loads((other / "results.json").read_text())
    for values in (config, results["config"]):
        values["pretrain"]["learning_rate"] = 0.125
    (other / "results.json").write_text(json.dumps(results))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(workdir, elsewhere)
    for path in (elsewhere / "predictions").glob("*_test.npz"):
        with np.load(path) as arrays:
            saved = dict(arrays)
        saved["ids"] = np.array([f"x{i}" for i in saved["ids"]])
        np.savez(path, **saved)
    out = tmp_path / "c.html"
    folders = [f"--workdir={x}" for x in (workdir, other, elsewhere)]
    assert main([*folders, f"--out={out}"]) == 0
    text = " ".join(" ".join(Page(out.read_text()).text).split())
    assert "pretrain.learning_rate" in text
    assert "0.125" in text
    assert "finetune.learning_rate" not in text
    assert "other images than run, so not paired with it: elsewhere" in text
    assert "run other .000 .000 to .000" in text
    with pytest.raises(RunError, match="given twice"):
        report.write_comparison([workdir, workdir], out)


def test_a_run_that_is_not_evaluated_or_damaged_ends_in_a_sentence(made, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(made[0], workdir)
    results = json.loads((workdir / "results.json").read_text())
    del results["rounds"][0]["calibration"]
    (workdir / "results.json").write_text(json.dumps(results))
    with pytest.raises(DamagedFileError, match=r"results\.json.*--stage=evaluate"):
        report.write_report(workdir, tmp_path / "r.html")
    (workdir / "results.json").unlink()
    with pytest.raises(SystemExit):
        main([f"--workdir={workdir}"])
    assert "has not been evaluated" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_results_json_is_read_once_a_run(made, monkeypatch):
    read = []
    monkeypatch.setattr(
        saved_run, "read_json", lambda path, *more: read.append(path) or read_json(path, *more)
    )
    run = SavedRun(made[0])
    ensembles = [run.ensemble(index) for index in run.rounds]
    assert [x.scalings for x in ensembles] == [
        {
            name: (found["temperature"], found["least_probability"])
            for name, found in row["calibration"].items()
        }
        for row in run.results()["rounds"]
    ]
    assert read == [run.paths.results]


def test_results_of_other_predictions_are_refused(made, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(made[0], workdir)
    results = json.loads((workdir / "results.json").read_text())
    results["summary"]["mae"]["auc"]["mean"] += 0.01
    (workdir / "results.json").write_text(json.dumps(results))
    with pytest.raises(DamagedFileError, match="its auc of mae is not that of predictions/"):
        report.write_report(workdir, tmp_path / "r.html")


def test_cases_are_the_most_and_least_confident_and_none_is_shown_twice():
    p = np.array([0.99, 0.9, 0.8, 0.7, 0.6, 0.95, 0.55])
    predictions = Predictions(
        np.array(list("abcdefg")),
        np.array([0, 0, 0, 0, 0, 1, 1]),
        np.stack([p, 1 - p], axis=1),
        np.arange(7),
    )
    found = pictures.choose_cases(predictions, 2)
    assert found == {
        "right and most confident": [0, 1],
        "right and least": [4, 3],
        "wrong and most confident": [5],
        "wrong and least": [6],
    }
    alone = pictures.choose_cases(predictions._replace(labels=np.ones(7, int)), 9)
    assert alone["right and most confident"] == alone["right and least"] == []


def test_numbers_are_written_as_the_field_does():
    assert [formats.number(x) for x in (0.9144, 1.0, 0.9999, -0.02, None, 0.0)] == [
        *(".914", "1.000", "1.000", "\u2212.020", "", ".000"),
    ]
    assert formats.p_value(0.0004) == "< .001"
    assert formats.p_value(0.0312) == ".031"


def test_a_network_costs_what_is_published():
    tiny_ = of_network("convnext_tiny", 1000, 224)
    assert tiny_.parameters == 28_589_128
    assert tiny_.multiply_adds == pytest.approx(4.47e9, rel=0.01)
    resnet = of_network("resnet18", 1000, 224)
    assert resnet.parameters == 11_689_512  # without batch norms' statistics


@pytest.mark.parametrize(("name", "classes"), [("busi", 3), ("isic2018", 7), ("kvasir", 8)])
def test_the_papers_tables_are_the_papers(name, classes):
    source = REPOSITORY.parent / "shared" / "seeds" / "paper_entropy_guided_mae.txt"
    if not source.exists():
        pytest.skip("the paper is not at hand")
    table = published.table_of(name, classes)
    text = source.read_text()
    start = text.index(f"Table {table.number}: Performance")
    lines = text[start:].splitlines()[2:12]
    for row, line in zip(table.rows, lines, strict=True):
        values = [float(x) for x in re.findall(r" (\d+\.\d+|-)(?= |$)", line) if x != "-"]
        assert [x for x in row[1:] if x is not None] == values
        assert line.startswith(row.model) or line.startswith("Ours")


def test_other_data_have_no_published_table():
    assert published.table_of("covid", 4) is None
    assert published.table_of("image_folder", 3) is None


def test_equal_curves_are_equal_bytes_and_take_the_pages_colours():
    labels = np.arange(30) % 2
    p = np.random.default_rng(0).dirichlet((1, 1), 30)
    said = {"mae": [figures.Said(labels, p, p)]}
    first, second = (figures.roc_curves(said, 1, "x") for _ in range(2))
    assert first == second
    assert "var(--series-0)" in first
    assert not re.search(r"#0\d0\d0\d", first)


def test_the_area_under_precision_is_the_average_precision(monkeypatch):
    labels = np.arange(200) % 2
    p = np.random.default_rng(0).dirichlet((1, 1), 200) * 0.7 + 0.3 * np.eye(2)[labels]
    p = p.round(2)  # with ties
    drawn = []
    monkeypatch.setattr(figures, "_mean_curves", lambda axes, said, *of: drawn.extend(of) or "")
    monkeypatch.setattr(figures, "_legend", lambda figure: None)
    monkeypatch.setattr(figures, "_GRID", (np.arange(100_000) + 0.5) / 100_000)
    said = figures.Said(labels, p, p)
    figures.precision_recall_curves({"mae": [said]}, 1, "x")
    curve, area = drawn
    assert curve(said).mean() == pytest.approx(area(said), abs=1e-4)
    first = p[:, 1] >= p[labels == 1, 1].max()  # the fewest images with one of the class
    assert curve(said)[0] == labels[first].mean()


def test_a_temperature_at_its_limit_is_told(made, tmp_path, caplog):
    workdir = shutil.copytree(made[0], tmp_path / "run")
    results = json.loads((workdir / "results.json").read_text())
    for row in results["rounds"]:
        for name, fitted in row["calibration"].items():
            fitted |= {"temperature": 2.0, "limit": ""}
            if name == "mae":
                fitted |= {"temperature": 99.9, "limit": "hottest"}
    del results["made_with"]["commit"]  # as of an older version
    (workdir / "results.json").write_text(json.dumps(results))
    assert main([f"--workdir={workdir}", f"--out={tmp_path / 'r.html'}"]) == 0
    text = " ".join("".join(Page((tmp_path / "r.html").read_text()).text).split())
    assert "Calibration of mae: No temperature was hot enough; 100 is the highest" in text
    Predictor(workdir)
    assert "Calibration of mae: No temperature was hot enough; 100 is the highest" in caplog.text


def test_many_curves_are_told_apart_by_colour_or_dash():
    styles = [tuple(figures.style(k).values()) for k in range(36)]
    assert len(set(styles)) == 36
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in itertools.pairwise(styles[:6]))
    labels = np.arange(30) % 2
    p = np.random.default_rng(0).dirichlet((1, 1), 30)
    names = [*(f"branch {k}" for k in range(6)), "ensemble"]  # configs/skin_asff.py:compare
    svg = figures.roc_curves({name: [figures.Said(labels, p, p)] for name in names}, 1, "x")
    curves = re.findall(r'<path d="[^"]{1000,}" [^>]*style="([^"]*)"', svg)
    assert len(curves) == 7
    first, *_, last = curves
    assert all("var(--series-0)" in x for x in (first, last))
    assert "dasharray" not in first
    assert "dasharray" in last


def test_nothing_runs_over_the_edge_of_the_page(made, views, tmp_path):
    long = [tmp_path / f"a_run_of_quite_a_long_name_with_number_{k}" for k in range(2)]
    for path in long:
        shutil.copytree(made[0], path)
    config = {"finetune": {"learning_rate": 0.125}, "data": {"dir": "/a/long/folder" * 6}}
    results = json.loads((long[1] / "results.json").read_text())
    for section, fields in config.items():
        results["config"][section] |= fields
    (long[1] / "results.json").write_text(json.dumps(results))
    report.write_comparison(long, tmp_path / "comparison.html")
    scrolling = """[...document.querySelectorAll('.scroll')].filter(
        x => x.scrollWidth > x.clientWidth).map(x => x.textContent.slice(0, 40))"""
    for path in (made[0] / "report.html", tmp_path / "comparison.html"):
        for width, shown in views(path.read_text()):
            assert shown.evaluate(OVERFLOW) == [], width
            # On a telephone tables scroll, with a shadow at the edge that hides something.
            assert width == 390 or shown.evaluate(scrolling) == []


def test_the_page_says_of_what_layer_and_grid_its_heat_is(read):
    text = " ".join("".join(read.text).split())
    # Of 32 pixels the last block has one cell.
    assert (
        "no finer than 8 x 8 cells on 32 x 32 pixels (layer stages_0/blocks_0, 8 x 8 grid)" in text
    )
    assert "regions that raise the score of the predicted class" in text
    assert "where it looks" not in text.lower()
