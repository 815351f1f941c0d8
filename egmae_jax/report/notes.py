"""Sentences about a run that readers of its results need to know."""

from pathlib import Path

from egmae_jax.evaluation import bootstrap
from egmae_jax.report.content import Content, ExternalContent
from egmae_jax.run.tables import describe_labels

_MAX_LISTED_CLASSES = 10  # with more classes, the images per class are not listed
FUSIONS = {
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
        sentences.append(
            "Pre-training saw test images, or unlabelled images of their groups (without labels)."
            if "test" not in run.config["pretrain"]["splits"]
            else "Pre-training saw the test images (without their labels)."
        )
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


def external_warnings(run: ExternalContent) -> list[str]:
    """Returns sentences on what makes an evaluation on images from elsewhere less reliable."""
    dataset = run.results["dataset"]
    sentences = []
    if absent := dataset["absent_classes"]:
        sentences.append(
            f"No image is of {', '.join(absent)}: macro averages are over the other classes."
        )
    if problem := dataset["near_duplicates_problem"]:
        sentences.append(
            "Near-duplicates of images that the run has seen could not all be looked for, only the "
            f"same files: {problem}"
        )
    groups, by_class = run.resampled.evidence
    present = {name: n for name, n in zip(run.classes, by_class, strict=True) if n}
    evidence = bootstrap.Evidence(groups, tuple(present.values()))
    if few := bootstrap.few_groups_warning(evidence, list(present)):
        sentences.append(few)
    if skipped := len(dataset["skipped"]):
        sentences.append(f"Unreadable images that were left out: {skipped}.")
    return sentences


def facts(run: Content) -> list[str]:
    """Returns sentences on how the results of a run were obtained, with its warnings."""
    results = run.results
    records = results.get("pretraining_started_from", [])
    unknown = any(record["seen"] is None for record in records)
    unseen = results["pretraining"] and not results["pretraining_saw_test"] and not unknown
    sentences = [
        tested(run),
        protocol(run),
        rounds(run),
        networks(run),
        describe_labels(results),
        balance(run),
        "Pre-training saw no test image." if unseen else "",
        f"What {records[0]['source']} was trained on is unknown." if unknown else "",
    ]
    return [*filter(None, sentences), *warnings(run)]


def balance(run: Content) -> str:
    """Says how fine-tuning made up for unequal classes, if it did; else ''."""
    settings = run.config["finetune"]
    clauses = {
        "cross_entropy": [],
        "focal": [f"focal loss (gamma {settings['focal_gamma']:g})"],
        "logit_adjusted": [f"logit-adjusted loss (tau {settings['logit_adjustment_tau']:g})"],
    }[settings["loss"]]
    if (weights := settings["class_weights"]) != "none":
        clauses.append(f"class weights {weights}")
    if settings["sampling"] == "balanced":
        clauses.append("images drawn with replacement, all classes equally often")
    return f"Fine-tuning made up for unequal classes: {'; '.join(clauses)}." if clauses else ""


def origin(run: Content, classifier: str) -> str:
    """Returns the initial weights of a branch in words; '' for the ensemble."""
    if classifier == "mae":
        return _pretrained_on(run)
    source = run.results["imagenet_weights"].get(classifier, "")
    return "random weights" if source == "none" else Path(source).name


def _pretrained_on(run: Content) -> str:
    """Describes the images that pre-training was on, and the weights that it started from."""
    parts = " and ".join(run.config["pretrain"]["splits"])
    images = [f"the {parts} images"] if parts else []
    if reports := run.results.get("pretraining_unlabelled"):
        least, most = (f(report["used"] for report in reports) for f in (min, max))
        images.append(f"{least}{f' to {most}' * (most > least)} unlabelled images")
    words = f"pre-training on {' and '.join(images)}"
    if weights := run.config["pretrain"].get("weights"):
        if not run.config["pretrain"]["epochs"]:
            return str(weights)
        words += f", which started from {weights}"
    return words


def tested(run: Content) -> str:
    """Counts the test images by class, and their groups."""
    counts, folds = run.tested_counts, len(run.results["rounds"])
    groups = run.resampled.evidence.groups
    classes = f"{len(counts)} classes"
    if len(counts) <= _MAX_LISTED_CLASSES:
        classes = ", ".join(f"{name} {count}" for name, count in counts.items())
    images = f"{sum(counts.values())} test images ({classes}) in {groups} groups"
    if run.config["rounds"]["kind"] == "folds":
        images += f", each in the test part of one of {folds} folds"
    return f"{images}."


def protocol(run: Content) -> str:
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


def rounds(run: Content) -> str:
    """Describes rounds and seeds."""
    seeds = [row["seed"] for row in run.results["rounds"]]
    if len(seeds) == 1:
        return f"One round (seed {seeds[0]}), so the spread over seeds is unknown."
    pretrained = bool(run.results["pretraining"])
    if run.config["rounds"]["kind"] == "folds":
        kind = ", the folds of a cross-validation"
        kind += ", each with a pre-training of its own" if pretrained else ""
    else:
        kind = " on one split" + (" and one pre-training" if pretrained else "")
    count = f"{len(seeds)} rounds (seeds {seeds[0]} to {seeds[-1]})"
    return f"{count}{kind}; standard deviations are sample deviations (n - 1)."


def networks(run: Content) -> str:
    """Describes the model of each classifier, and its initial weights unless they are random."""
    clauses = []
    for name, model in run.results["branches"].items():
        words = [name] if name == model else [name, "is", model]
        if (source := origin(run, name)) != "random weights":
            words += ["from", source]
        if len(words) > 1:
            clauses.append(" ".join(words))
    if "ensemble" in run.classifiers:
        clauses.append(f"ensemble is {FUSIONS[run.config['fusion']['kind']]}")
    return f"{'; '.join(clauses)}." if clauses else ""
