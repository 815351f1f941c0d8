"""Fills in reporting checklists with what a run knows, and leaves the rest to the authors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from egmae_jax.core import markup
from egmae_jax.core.files import require_output, write_atomically
from egmae_jax.core.numbers import number
from egmae_jax.evaluation.metrics import INTERVAL_METRICS, TITLES
from egmae_jax.report import notes, operating
from egmae_jax.report.checklist_items import CLAIM, TRIPOD, Checklist, Item
from egmae_jax.report.content import RESAMPLES, Content
from egmae_jax.report.render import environment, interval
from egmae_jax.run import epoch_selection
from egmae_jax.run.tables import describe_labels

OPEN = "To be filled in by the authors"
_MAX_CLASSES = 10  # with more classes, the operating points are not listed


class Answer(NamedTuple):
    """An item of a checklist with its answer."""

    item: Item
    known: str  # what the run knows; '' for an open item
    open: str  # what the authors are to fill in; '' for a complete item


class Filled(NamedTuple):
    """A filled-in checklist."""

    checklist: Checklist
    answers: tuple[Answer, ...]

    @property
    def summary(self) -> str:
        """Counts the items by state, such as '20 of 44 items are filled in from the run, ...'."""
        complete = sum(not x.open for x in self.answers)
        partly = sum(bool(x.known and x.open) for x in self.answers)
        left = len(self.answers) - complete - partly
        return (
            f"{complete} of {len(self.answers)} items are filled in from the run, {partly} in "
            f"part; {left} are open."
        )


def write_checklist(workdir: Path, out: Path) -> None:
    """Writes the filled-in checklists as Markdown, for the supplement of a paper.

    Args:
        workdir: folder of a run that has been evaluated.
        out: Markdown file to write.

    Raises:
        AccessError: `out` has another suffix or cannot be written.
        RunError: the run has not been evaluated.
        DamagedFileError: a file of the workdir cannot be read.
    """
    require_output(out, (".md",))
    run = Content(workdir)
    template = environment(markup.markdown).get_template("checklist.md.j2")
    text = template.render(title=run.title, checklists=fill(run))
    write_atomically(out, text.encode("utf-8", "backslashreplace"))


def fill(run: Content) -> list[Filled]:
    """Fills in CLAIM 2024 and TRIPOD+AI from results.json, the config and the predictions."""
    known = facts(run)
    return [_fill(checklist, known) for checklist in (CLAIM, TRIPOD)]


def _fill(checklist: Checklist, known: Mapping[str, str]) -> Filled:
    answers = []
    for item in checklist.items:
        text = " ".join(filter(None, (known[name] for name in item.facts.split())))
        left = "" if text and not item.authors else OPEN
        if text and item.authors:
            left = f"{OPEN}: {item.authors}"
        answers.append(Answer(item, text, left))
    return Filled(checklist, tuple(answers))


def facts(run: Content) -> dict[str, str]:
    """Returns sentences about a run by the names in `checklist_items`; '' if it does not know."""
    return {**_about_data(run), **_about_training(run), **_about_results(run)}


def _about_data(run: Content) -> dict[str, str]:
    """Describes the images, their preparation and their partitions."""
    config, results, dataset = run.config, run.results, run.results["dataset"]
    data, skipped = config["data"], len(dataset["skipped"])
    left_out = [f"{k} {reason}" for reason, k in dataset.get("left_out_by_reason", {}).items() if k]
    first = " of the first fold" if config["rounds"]["kind"] == "folds" else ""
    numbers = "; ".join(
        f"{part} {sum(counts.values())} ({', '.join(f'{n} {k}' for n, k in counts.items())})"
        for part, counts in dataset["counts"].items()
    )
    return {
        "data": _join(f"{dataset['title']}.", dataset.get("account"), dataset.get("citation")),
        "classes": f"Classes: {', '.join(run.classes)}.",
        "excluded": f"Left out: {'; '.join(left_out) or 'no labelled image'}."
        + f" Unreadable: {skipped}.",
        "unreadable": f"Unreadable images left out: {skipped} (data.on_error={data['on_error']}).",
        "preprocessing": f"Images are decoded to 8-bit {data['color']}, resized "
        f"({data['resize']}, stored at {data['store_size']} pixels at most on the shorter side), "
        f"cropped to {data['image_size']} x {data['image_size']} pixels and normalised by "
        "ImageNet's mean and standard deviation; black and white of deeper files: "
        f"{data['intensity_range']}.",
        "audit": "The audit of identical and near-identical images and of confounders is in the "
        "report's section Data.",
        "subset": describe_labels(results) or "All labelled images of the training part were used.",
        "partitions": f"Images{first}: {numbers}. Split seed {data['split_seed']}; "
        f"near-duplicates: correlation of thumbnails above {data['near_duplicate_threshold']:g}.",
        "protocol": notes.protocol(run) or "Images were split one by one, regardless of patients.",
        "leaks": "Pre-training saw test images or images of their groups, without labels."
        if results["pretraining_saw_test"]
        else "",
        "numbers": f"Images{first}: {numbers}.",
        "tested": notes.tested(run),
        "imbalance": _join(f"Training images{first}:", _counts(dataset["counts"]["train"]) + ".")
        + " "
        + (notes.balance(run) or "Fine-tuning did not make up for unequal classes."),
    }


def _about_training(run: Content) -> dict[str, str]:
    """Describes the networks, their training and the software."""
    config, results, data = run.config, run.results, run.config["data"]
    made_with, select = results["made_with"], run.saved.config.finetune.select
    parameters = (f"{x['name']} {x['parameters'] / 1e6:.2f} million" for x in run.summary)
    fusion = notes.FUSIONS[config["fusion"]["kind"]]
    return {
        "kind": f"Deep learning: development and internal evaluation of a classifier of images in "
        f"{len(run.classes)} classes.",
        "model": _join(
            notes.networks(run) or f"{', '.join(results['branches'].values())}.",
            f"Input: {data['image_size']} x {data['image_size']} pixels, 3 channels. Parameters: "
            f"{', '.join(parameters)}.",
        ),
        "predictors": f"The pixels of one image ({data['image_size']} x {data['image_size']}); no "
        "clinical variables.",
        "unassessed": "The predictors are pixels; nobody assesses them.",
        "output": "A probability for each class, calibrated by temperature scaling on validation "
        "images; the most probable class is predicted.",
        "initial": _join(
            *(f"{b}: {notes.origin(run, b)}." for b in results["branches"]),
            "Parameters without a checkpoint: random, kernels by "
            f"{config['model']['kernel_init']}.",
        ),
        "training": _training(run),
        "rounds": notes.rounds(run),
        "selection": f"The epoch with the {epoch_selection.describe(select)} is kept; with it the "
        "test part was scored once.",
        "ensemble": f"Fusion of {', '.join(results['branches'])}: {fusion}."
        if run.classifiers[-1] == "ensemble"
        else "No ensemble.",
        "software": f"{', '.join(f'{k} {v}' for k, v in made_with.get('versions', {}).items())}; "
        f"commit {made_with.get('commit') or 'unknown'}; {made_with.get('devices', '')}.",
        "record": "All settings are in config.json of the workdir; command: "
        f"{made_with.get('command', 'unknown')}",
    }


def _about_results(run: Content) -> dict[str, str]:
    """Describes how the test part was scored, and the scores."""
    config, results = run.config, run.results
    chief, last, calibration = run.classifiers[-1], run.summary[-1], run.calibrations[-1]
    performance = (
        f"{TITLES[m]} {number(last['metrics'][m]['mean'])} ({interval(last['intervals'][m])})"
        for m in INTERVAL_METRICS
    )
    return {
        "thresholds": "Thresholds for given specificities and sensitivities are chosen on the "
        "validation part (report, Operating points).",
        "metrics": f"{', '.join(TITLES.values())}; ROC, precision-recall and decision curves; "
        "reliability diagrams; sensitivity and specificity at thresholds chosen on validation.",
        "uncertainty": f"95 % intervals by a bootstrap of {run.resampled.evidence.groups} groups "
        f"of test images ({RESAMPLES} resamples); McNemar's test by a permutation of groups, "
        "paired bootstrap of differences; no correction for multiple tests.",
        "spread": f"Standard deviation over {len(results['rounds'])} {config['rounds']['kind']}: "
        f"accuracy {number(last['metrics']['accuracy']['std'])}, AUC "
        f"{number(last['metrics']['auc']['std'])}."
        if len(results["rounds"]) > 1
        else "",
        "explained": "Grad-CAM of the most and the least certain predictions is in the report.",
        "internal": "The test part is of the same data set as the training part: internal "
        "evaluation.",
        "performance": f"{chief}, test, 95 % intervals in brackets: {', '.join(performance)}.",
        "tests": " ".join(
            f"{x['second']} minus {x['first']}: accuracy "
            f"{number(x['differences']['accuracy'].mean)} "
            f"({interval(x['differences']['accuracy'])})."
            for x in run.pairs
        ),
        "points": f"{chief}, thresholds chosen on validation for specificity .95, test: "
        f"{'; '.join(operating.describe(run))}."
        if len(run.classes) <= _MAX_CLASSES
        else "Sensitivity and specificity of every class are in the report.",
        "calibration": f"Calibration error (ECE) of {chief}: {number(calibration['before'])}, "
        f"after temperature scaling {number(calibration['after'])}.",
        "failures": _failures(run),
        "warnings": " ".join(notes.warnings(run)),
    }


def _join(*sentences: Any) -> str:
    """Joins the sentences that are not empty, each with a full stop."""
    texts = (str(x).strip() for x in sentences if x)
    return " ".join(x if x[-1] in ".:" else f"{x}." for x in texts)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _training(run: Content) -> str:
    """Describes epochs, batches, optimizer and augmentation of both stages."""
    sentences = []
    if run.results["pretraining"]:
        stage, corruption = run.config["pretrain"], run.config["corruption"]
        sentences.append(
            f"Pre-training: {_optimizer(stage)}; corruption {corruption['kind']}, patches of "
            f"{corruption['patch_size']} pixels."
        )
    stage = run.config["finetune"]
    augmentation = ["random crop", "horizontal flip", *stage["augment"]]
    sentences.append(
        f"Fine-tuning: {_optimizer(stage)}; loss {stage['loss']}, label "
        f"smoothing {stage['label_smoothing']:g}, drop path {stage['drop_path_rate']:g}; trained "
        f"layers: {stage['trainable']}; augmentation: {', '.join(augmentation)}."
    )
    return _join(*sentences, f"Compute dtype {run.config['model']['dtype']}.")


def _optimizer(stage: Mapping[str, Any]) -> str:
    return (
        f"{stage['epochs']} epochs, batch size {stage['batch_size']}, AdamW with peak learning "
        f"rate {stage['learning_rate']:g}, {stage['warmup_epochs']} warm-up epochs, cosine "
        f"schedule and weight decay {stage['weight_decay']:g}"
    )


def _failures(run: Content) -> str:
    """Counts the wrong test images of the last classifier, and names the most frequent error."""
    table = run.confusion[run.classifiers[-1]]
    errors = {
        (true, predicted): count
        for true, row in enumerate(table)
        for predicted, count in enumerate(row)
        if true != predicted and count
    }
    over = " over all rounds" if len(run.results["rounds"]) > 1 else ""
    text = f"{sum(errors.values())} of {sum(map(sum, table))} test images are wrong{over}"
    if errors:
        (true, predicted), count = max(errors.items(), key=lambda x: x[1])
        text += f"; most often {run.classes[true]} as {run.classes[predicted]} ({count})"
    return f"{text}. Confusion matrices and the most confident errors are in the report."
