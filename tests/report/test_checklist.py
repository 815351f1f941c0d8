"""Checklists: what is filled in comes from the run, what is open is marked, names stay names."""

import json

import markdown_it
import pytest

from egmae_jax.commands.report import main
from egmae_jax.report import checklist, render
from egmae_jax.report.checklist_items import CLAIM, TRIPOD
from egmae_jax.report.content import Content
from tests.conftest import HTML_CLASSES
from tests.report.conftest import Page


@pytest.fixture(scope="module")
def run(html_run):
    return Content(html_run[0])


@pytest.fixture(scope="module")
def answers(run):
    claim, tripod = checklist.fill(run)
    return {
        "CLAIM": {x.item.number: x for x in claim.answers},
        "TRIPOD": {x.item.number: x for x in tripod.answers},
    }


def test_the_items_are_numbered_as_in_their_sources():
    assert [item.number for item in CLAIM.items] == [str(i) for i in range(1, 45)]
    numbers = [item.number for item in TRIPOD.items]
    assert len(set(numbers)) == len(numbers)
    assert list(dict.fromkeys(int(n.rstrip("abcdefg")) for n in numbers)) == list(range(1, 28))
    assert numbers == sorted(numbers, key=lambda n: (int(n.rstrip("abcdefg")), n))


def test_every_fact_is_used_and_known_by_name(run):
    used = {name for c in (CLAIM, TRIPOD) for item in c.items for name in item.facts.split()}
    assert used == set(checklist.facts(run))


def test_items_are_filled_in_from_the_run(html_run, run, answers):
    results = json.loads((html_run[0] / "results.json").read_text())
    config, claim = results["config"], answers["CLAIM"]
    for name, count in results["dataset"]["counts"]["test"].items():
        assert f"{name} {count}" in claim["19"].known
    assert results["dataset"]["account"] in claim["7"].known
    assert f"{config['data']['image_size']} x {config['data']['image_size']}" in claim["9"].known
    assert "Grouped split" in claim["20"].known
    assert config["model"]["name"] in claim["22"].known
    assert f"jax {results['made_with']['versions']['jax']}" in claim["23"].known
    assert str(results["made_with"]["commit"]) in claim["23"].known.replace("unknown", "None")
    assert "imagenet: random weights" in claim["24"].known
    assert f"{config['pretrain']['epochs']} epochs" in claim["25"].known
    assert f"rate {config['finetune']['learning_rate']:g}" in claim["25"].known
    assert "seeds 0 to 1" in claim["25"].known
    assert f"{run.resampled.evidence.groups} groups" in claim["29"].known
    accuracy = results["summary"]["ensemble"]["accuracy"]
    assert f"Accuracy {render.number(accuracy['mean'])} (" in claim["37"].known
    assert render.number(accuracy["std"]) in claim["30"].known
    point = run.operating_points[-1][0][1]
    achieved = f"specificity {render.number(point.specificity.mean)}"
    assert achieved in claim["38"].known
    wrong = sum(
        count
        for row in results["rounds"]
        for i, counts in enumerate(row["confusion"]["ensemble"])
        for j, count in enumerate(counts)
        if i != j
    )
    assert f"{wrong} of" in claim["39"].known
    ece = [row["calibration"]["ensemble"]["ece"] for row in results["rounds"]]
    assert render.number(sum(ece) / len(ece)) in answers["TRIPOD"]["23a"].known
    train = results["dataset"]["counts"]["train"]
    assert all(f"{name} {count}" in answers["TRIPOD"]["13"].known for name, count in train.items())


def test_what_only_the_authors_know_is_open(answers):
    for number in ("3", "5", "11", "13", "14", "16", "33", "41", "44"):
        assert answers["CLAIM"][number][1:] == ("", checklist.OPEN)
    for number in ("3c", "5b", "8c", "14", "17", "18a", "19", "25", "27c"):
        assert answers["TRIPOD"][number][1:] == ("", checklist.OPEN)
    assert answers["CLAIM"]["8"].open == f"{checklist.OPEN}: clinical criteria"
    for each in answers.values():
        assert all(x.known or x.open for x in each.values())


def test_the_supplement_is_two_markdown_tables(html_run, tmp_path, capsys):
    out = tmp_path / "checklist.md"
    main([f"--workdir={html_run[0]}", f"--checklist={out}"])
    assert f"Written to {out}" in capsys.readouterr().out
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(out.read_text())
    assert (html.count("<table>"), html.count("<tr>")) == (2, 44 + 52 + 2)
    assert html.count(f"<strong>{checklist.OPEN}") == sum(
        bool(x.open) for filled in checklist.fill(Content(html_run[0])) for x in filled.answers
    )
    assert html.count("15 of 44 items are filled in from the run, 13 in part; 16 are open.") == 1
    for name in HTML_CLASSES.values():
        assert name not in html  # it is escaped


def test_the_page_has_the_same_answers(html_run, answers):
    page = Page((html_run[0] / "report.html").read_text())
    for each in answers.values():
        for answer in each.values():
            assert " ".join(answer.known.split()) in page.text
    assert page.text.count(checklist.OPEN) == sum(
        bool(x.open) for each in answers.values() for x in each.values()
    )


def test_a_checklist_is_of_one_run_and_markdown(capsys):
    for arguments, sentence in (
        (["--workdir=a", "--workdir=b", "--checklist=c.md"], "--checklist is for one run"),
        (["--workdir=a", "--checklist=c.html"], "c.html must end in .md"),
        (["--workdir=a", "--checklist=c.md", "--data_dir=d"], "--data_dir is for the report"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert sentence in capsys.readouterr().err


def test_the_metric_that_selected_the_epoch_is_named(run, monkeypatch):
    assert "highest validation AUC is kept" in checklist.facts(run)["selection"]
    config = run.saved.config.copy_and_resolve_references()
    with config.unlocked():
        config.finetune.select = "loss"
    monkeypatch.setattr(run.saved, "config", config)
    assert "lowest validation loss is kept" in checklist.facts(run)["selection"]
