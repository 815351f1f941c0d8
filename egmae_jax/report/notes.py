"""Sentences about a run that readers of its results need to know."""

from pathlib import Path

from egmae_jax.evaluation import bootstrap
from egmae_jax.report.content import Content

_MAX_LISTED_CLASSES = 10  # with more classes, the images per class are not listed
_FUSIONS = {
    "mean": "the mean of the branches' class probabilities",
    "weighted": "a mean of the branches' class probabilities with weights fitted on validation "
    "images",
    "stacked": "a logistic regression on the branches' log-probabilities, fitted on validation "
    "images",
}


def warnings(run: Content) -> list[str]:
    """Returns sentences on what makes the results of a run less reliable than they seem."""
    results, dataset = run.results, run.results["dataset"]
    sentences = []
    if results["pretraining_saw_test"]:
        sentences.append("Pre-training saw the test images (without their labels).")
    if dataset["protocol"] == "image_level":
        sentences.append(
            "Images were split one by one (data.protocol='image_level'): near-duplicates and "
            "images of one patient may be in both training and test, so these figures are too "
            "optimistic."
        )
    sources = results["imagenet_weights"]
    if at_random := [branch for branch, source in sources.items() if source == "none"]:
        sentences.append(
            f"{', '.join(at_random)} started from random weights instead of ImageNet's, so these "
            "figures are not those of the method."
        )
    if few := bootstrap.few_groups_warning(run.resampled.evidence, run.classes):
        sentences.append(few)
    if skipped := len(dataset["skipped"]):
        sentences.append(f"Unreadable images that were left out: {skipped}.")
    if skipped := len(results["skipped_steps"]):
        sentences.append(f"Training steps that were skipped as not finite: {skipped}.")
    if (machines := len(results["made_with"]["machines"])) > 1:
        sentences.append(
            f"The run used {machines} different machines or library versions, whose results agree "
            "only up to rounding; environment.json lists them."
        )
    return sentences


def facts(run: Content) -> list[str]:
    """Returns sentences on how the results of a run were obtained, with its warnings."""
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
    """Returns the initial weights of a branch in words; '' for the ensemble."""
    if classifier == "mae":
        parts = " and ".join(run.config["pretrain"]["splits"])
        return f"pre-training on the {parts} images"
    source = run.results["imagenet_weights"].get(classifier, "")
    return "random weights" if source == "none" else Path(source).name


def _tested(run: Content) -> str:
    counts, rounds = run.tested_counts, len(run.results["rounds"])
    groups = run.resampled.evidence.groups
    classes = f"{len(counts)} classes"
    if len(counts) <= _MAX_LISTED_CLASSES:
        classes = ", ".join(f"{name} {count}" for name, count in counts.items())
    images = f"{sum(counts.values())} test images ({classes}) in {groups} groups"
    if run.config["rounds"]["kind"] == "folds":
        images += f", each in the test part of one of {rounds} folds"
    return f"{images}."


def _protocol(run: Content) -> str:
    """Describes the split protocol; '' for image-level splits, about which `warnings` warns."""
    match run.results["dataset"]["protocol"]:
        case "grouped":
            return (
                "Grouped split (near-duplicates, and images of one patient or lesion where known, "
                "are in the same part)."
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
        return f"One round (seed {seeds[0]}), so the spread over seeds is unknown."
    pretrained = bool(run.results["pretraining"])
    if run.config["rounds"]["kind"] == "folds":
        kind = ", the folds of a cross-validation"
        kind += ", each with a pre-training of its own" if pretrained else ""
    else:
        kind = " on one split" + (" and one pre-training" if pretrained else "")
    rounds = f"{len(seeds)} rounds (seeds {seeds[0]} to {seeds[-1]})"
    return f"{rounds}{kind}; standard deviations are sample deviations (n - 1)."


def _networks(run: Content) -> str:
    """Describes the model of each classifier, and its initial weights unless they are random."""
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
