"""Sentences on a run that a reader of its figures must know."""

from pathlib import Path

from egmae_jax.evaluation import bootstrap
from egmae_jax.report.content import Content

_MOST_CLASSES = 10  # classes whose test images are counted one by one
_FUSIONS = {
    "mean": "the mean of the branches' class probabilities",
    "weighted": "a mean of the branches' class probabilities with weights fitted on validation "
    "images",
    "stacked": "a logistic regression on the branches' log-probabilities, fitted on validation "
    "images",
}


def warnings(run: Content) -> list[str]:
    """What makes the figures of a run less than they seem."""
    results, dataset = run.results, run.results["dataset"]
    sentences = []
    if results["pretraining_saw_test"]:
        sentences.append("Pre-training saw the test images (without their labels).")
    if dataset["protocol"] == "image_level":
        sentences.append(
            "Images were split one by one (data.protocol='image_level'): near-duplicates and "
            "images of one patient may be in both training and test, so these figures flatter."
        )
    sources = results["imagenet_weights"]
    if at_random := [branch for branch, source in sources.items() if source == "none"]:
        sentences.append(
            f"{', '.join(at_random)} started from random weights instead of ImageNet's: these are "
            "not the method's figures."
        )
    if few := bootstrap.few_groups_warning(run.resampled.evidence, run.classes):
        sentences.append(few)
    if skipped := len(dataset["skipped"]):
        sentences.append(f"Unreadable images, left out: {skipped}.")
    if skipped := len(results["skipped_steps"]):
        sentences.append(f"Training steps that were not finite, left out: {skipped}.")
    if (machines := len(results["made_with"]["machines"])) > 1:
        sentences.append(
            f"The run was on {machines} machines or versions of its libraries, whose numbers agree "
            "up to rounding: environment.json lists them."
        )
    return sentences


def facts(run: Content) -> list[str]:
    """How the figures of a run came about, with its warnings."""
    results = run.results
    unseen = results["pretraining"] and not results["pretraining_saw_test"]
    sentences = [
        _tested(run),
        _protocol(run),
        _rounds(run),
        _networks(run),
        "Pre-training saw no test image." if unseen else "",
    ]
    return [*filter(None, sentences), *warnings(run)]


def origin(run: Content, classifier: str) -> str:
    """What a branch started from; '' for the ensemble."""
    if classifier == "mae":
        parts = " and ".join(run.config["pretrain"]["splits"])
        return f"pre-training on the {parts} images"
    source = run.results["imagenet_weights"].get(classifier, "")
    return "random weights" if source == "none" else Path(source).name


def _tested(run: Content) -> str:
    counts, rounds = run.tested_counts, len(run.results["rounds"])
    groups = run.resampled.evidence.groups
    classes = f"{len(counts)} classes"
    if len(counts) <= _MOST_CLASSES:
        classes = ", ".join(f"{name} {count}" for name, count in counts.items())
    images = f"{sum(counts.values())} test images ({classes}) in {groups} groups"
    if run.config["rounds"]["kind"] == "folds":
        images += f", each in the test part of one of {rounds} folds"
    return f"{images}."


def _protocol(run: Content) -> str:
    """The split protocol; '' for one that leaks, of which `warnings` speaks."""
    match run.results["dataset"]["protocol"]:
        case "grouped":
            return (
                "Grouped split (near-duplicates, and images of a patient or lesion where these are "
                "known, are in one part)."
            )
        case "official":
            dropped = "left out" if run.config["data"]["drop_leaks"] else "kept"
            return (
                "Official split (the data set's own parts; training images in a group with test "
                f"images were {dropped})."
            )
    return ""


def _rounds(run: Content) -> str:
    seeds = [row["seed"] for row in run.results["rounds"]]
    if len(seeds) == 1:
        return f"One round (seed {seeds[0]}), so nothing is known of the spread over seeds."
    pretrained = bool(run.results["pretraining"])
    if run.config["rounds"]["kind"] == "folds":
        kind = ", the folds of a cross-validation"
        kind += ", each with a pre-training of its own" if pretrained else ""
    else:
        kind = " on one split" + (" and one pre-training" if pretrained else "")
    rounds = f"{len(seeds)} rounds (seeds {seeds[0]} to {seeds[-1]})"
    return f"{rounds}{kind}; deviations are the sample's (n - 1)."


def _networks(run: Content) -> str:
    """Model and origin of each classifier; `warnings` names those that started at random."""
    clauses = []
    for name, model in run.results["branches"].items():
        words = [name] if name == model else [name, "is", model]
        if (source := origin(run, name)) != "random weights":
            words += ["from", source]
        if len(words) > 1:
            clauses.append(" ".join(words))
    if "ensemble" in run.classifiers:
        clauses.append(f"ensemble is {_FUSIONS[run.config['fusion']['kind']]}")
    return f"{'; '.join(clauses)}." if clauses else ""
