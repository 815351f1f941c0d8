"""The model card, README.md: what a model is, how good, on what, and how to call it.

What the data set's makers and users named, such as classes, is text here and never markup.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from egmae_jax.core.files import REEVALUATE, damaged, write_atomically
from egmae_jax.core.markup import markdown as text
from egmae_jax.core.markup import printable
from egmae_jax.deploy.export import weights
from egmae_jax.deploy.export.system import System, View
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.bootstrap import Evidence, too_few
from egmae_jax.evaluation.metrics import TITLES
from egmae_jax.run.saved_run import SavedRun

_PAPER = (
    "Florindo and Moura, Entropy-Guided Self-Supervised Learning for Medical Image "
    "Classification, arXiv 2605.21970, 2026"
)
_TITLES = {
    "accuracy": "Accuracy",
    "precision": "Precision, macro",
    "recall": "Recall, macro",
    "f1": "F1, macro",
    "auc": "AUC, one against the rest, macro",
    "specificity": "Specificity, macro",
    "pr_auc": "PR-AUC, macro",
    "ece": "Expected calibration error",
}
_PROTOCOLS = {
    "grouped": "near-duplicates, and images of a patient or lesion where these are known, are in "
    "one part",
    "official": "the data set's own parts",
    "image_level": "image by image, so that near-duplicates can be in several parts: such figures "
    "are too good",
}


def card(run: SavedRun, system: System, round_index: int, formats: Sequence[str]) -> str:
    """The text of a model card.

    Args:
        run: that has been evaluated.
        system: a branch or the ensemble.
        round_index: that it is of.
        formats: that lie beside the card.

    Raises:
        DamagedFileError: results.json lacks what belongs here.
    """
    results = run.results()
    try:
        sections = [
            _front_matter(results, system, round_index, formats),
            _description(run, results, system, round_index),
            _data(results, round_index),
            _figures(results, system, round_index),
            _origin(results, system),
            _usage(system, formats),
            _limits(run, system),
            _citations(run, results),
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = "a model card cannot be made of it"
        raise damaged(run.paths.results, reason, error, REEVALUATE) from error
    return "\n\n".join(sections) + "\n"


def write(text: str, folder: Path) -> None:
    """Writes README.md."""
    write_atomically(folder / "README.md", text)


def _front_matter(
    results: Mapping[str, Any], system: System, round_index: int, formats: Sequence[str]
) -> str:
    name = results["dataset"]["name"]
    test = results["rounds"][round_index]["test"][system.name]
    single = system.networks[0].branch.model_name if system.fusion is None else ""
    for_timm = bool(single) and weights.in_timm(single) and {"timm", "onnx"} & set(formats)
    data = ModelCardData(
        library_name="timm" if for_timm else "jax",
        pipeline_tag="image-classification",
        tags=["medical-imaging", *(["timm"] if for_timm else []), "jax"],
        model_name=f"{name} {system.name}",
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=name,
                dataset_name=printable(results["dataset"]["title"]),
                dataset_split="test",
                metric_type=metric,
                metric_value=round(test[metric], 4),
            )
            for metric in ("accuracy", "f1")
        ],
    )
    return f"---\n{data.to_yaml()}\n---"


def _description(
    run: SavedRun, results: Mapping[str, Any], system: System, round_index: int
) -> str:
    title = text(results["dataset"]["title"])
    models = [f"{text(n.branch.model_name)} (`{n.branch.name}`)" for n in system.networks]
    what = f"the network {models[0]}"
    if system.fusion is not None:
        kind = {
            "mean": "the mean of their class probabilities",
            "weighted": "a weighted mean of their class probabilities, fitted on validation images",
            "stacked": "a logistic regression on their log-probabilities, fitted on validation "
            "images",
        }[system.fusion.kind]
        what = f"{len(models)} networks, {', '.join(models)}, fused by {kind}"
    classes = _listed(system.classes)
    seed = results["rounds"][round_index]["seed"]
    return (
        f"# {system.name}: {title}\n\n"
        f"An image classifier: {what}. It tells {len(system.classes)} classes, in the order of its "
        f"outputs: {classes}.\n\n"
        f"Trained by egmae_jax; round {round_index} (seed {seed}) of {len(run.rounds)}.\n\n"
        "**License: not chosen.** Whoever publishes this fills in `license:` at the top of this "
        "file; the terms of the data set may restrict it."
    )


def _data(results: Mapping[str, Any], round_index: int) -> str:
    dataset = results["dataset"]
    counts = results["rounds"][round_index].get("counts", dataset["counts"])
    rows = [
        [text(name), *(str(counts[part][name]) for part in ("train", "validation", "test"))]
        for name in dataset["classes"]
    ]
    protocol = dataset["protocol"]
    return (
        f"## Data\n\n{text(dataset['title'])}. Split protocol `{protocol}`: "
        f"{_PROTOCOLS[protocol]}.\n\n"
        + _table(["Class", "Training images", "Validation", "Test"], rows)
        + (f"\n\n{text(dataset['account'])}." if "account" in dataset else "")
    )


def _figures(results: Mapping[str, Any], system: System, round_index: int) -> str:
    row, name = results["rounds"][round_index], system.name
    summary, rounds = results["summary"][name], len(results["rounds"])
    rows = []
    for metric in row["test"][name]:
        interval = row["intervals"][name].get(metric)
        rows.append(
            [
                _TITLES.get(metric) or TITLES.get(metric, metric),
                _figure(row["test"][name][metric]),
                "" if interval is None else " to ".join(map(_figure, interval)),
                *([_mean_std(summary[metric])] if rounds > 1 else []),
            ]
        )
    spread = [f"Mean ± standard deviation of {rounds} rounds"] if rounds > 1 else []
    by_class = [
        [text(label), *(_figure(figures[m]) for m in ("recall", "specificity", "precision", "auc"))]
        for label, figures in row["by_class"][name].items()
    ]
    calibrated, before = row["calibration"][name], row["test"][name]["ece"]
    limit = calibration.explain(calibrated)
    return (
        "## Test figures\n\n"
        "Of this very model on the test images, which chose nothing: the epoch was chosen, and "
        f"everything fitted, on validation images. {_intervals(results, row)}\n\n"
        + _table(["", "This model", "Interval", *spread], rows)
        + "\n\nEach class against the rest:\n\n"
        + _table(["Class", "Recall (sensitivity)", "Specificity", "Precision", "AUC"], by_class)
        + "\n\nThe output `calibrated` is scaled by a temperature of "
        f"{calibrated['temperature']:.3f}"
        + (
            f" and gives each class at least {calibrated['least_probability']:.2g}"
            if calibrated.get("least_probability")
            else ""
        )
        + ", which takes the calibration error above "
        f"from {_figure(before)} to {_figure(calibrated['ece'])}."
        + (f" {limit}" if limit else "")
        + ("" if rounds > 1 else " One round was run: nothing is known of the spread over seeds.")
    )


def _intervals(results: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What the intervals are of."""
    if "groups" not in row:
        return (
            "Intervals: 95 %, by an older version that took images for independent: **too short** "
            "where images are of one patient, lesion or near-duplicates (main.py with "
            "--stage=evaluate makes them anew)."
        )
    images = sum(row.get("counts", results["dataset"]["counts"])["test"].values())
    classes = results["dataset"]["classes"]
    evidence = Evidence(row["groups"], tuple(row["groups_by_class"][name] for name in classes))
    few = too_few(evidence, [text(name) for name in classes])
    return (
        f"Intervals: 95 %, by a bootstrap of the {row['groups']} groups (patients, lesions, "
        f"near-duplicates) of the {images} test images; they say nothing of other seeds."
        + (f" **{few}**" if few else "")
    )


def _origin(results: Mapping[str, Any], system: System) -> str:
    lines = []
    for branch in (network.branch for network in system.networks):
        if branch.is_mae:
            parts = _listed(results["config"]["pretrain"]["splits"])
            lines.append(
                f"- `{branch.name}`: pre-trained without labels on the data set's own images "
                f"({parts}) as an entropy-guided masked autoencoder. "
                + (
                    "**Pre-training saw the test images**, so the test figures may be too good."
                    if results["pretraining_saw_test"]
                    else "Pre-training did not see the test images."
                )
            )
        elif (source := results["imagenet_weights"][branch.name]) == "none":
            lines.append(
                f"- `{branch.name}`: started from **random weights**, not from ImageNet's; the "
                "figures are not those of the published method."
            )
        else:
            digest = results["imagenet_sha256"][branch.name]
            lines.append(
                f"- `{branch.name}`: started from the ImageNet weights {text(Path(source).name)} "
                f"(SHA-256 {digest})."
            )
    return "## What it started from\n\n" + "\n".join(lines)


def _usage(system: System, formats: Sequence[str]) -> str:
    view, single = system.view, system.fusion is None
    model_name = system.networks[0].branch.model_name
    parts = [
        "## Use\n\n"
        f"**An image must be** {view.in_words()}. Pixels are then divided by 255 and normalised by "
        "ImageNet's mean and standard deviation, which the programs below do themselves. Of a "
        "16-bit file the high byte was used, of an image longer than 16 times its shorter side "
        "the middle."
    ]
    if single and {"timm", "onnx"} & set(formats):
        parts.append(_timm_usage(view, model_name, len(system.classes)))
    if "stablehlo" in formats:
        parts.append(
            "`model.stablehlo` is the whole classifier with its weights, for CPU, CUDA and TPU and "
            "any number of images at a time; it needs jax, flatbuffers, numpy and Pillow. "
            "`model.stablehlo.json` says what it takes and gives. JAX promises that versions of "
            "the next six months load it.\n\n"
            + _code(
                *("import jax, numpy as np, PIL.Image, PIL.ImageOps", "from jax import export", ""),
                'with open("model.stablehlo", "rb") as file:',
                "    classify = jax.jit(export.deserialize(bytearray(file.read())).call)",
                *_view_code(view),
                "found = classify(np.asarray(image)[None])",
                'print(found["calibrated"])  # or "probabilities", as the tests saw them',
            )
        )
    if single and "onnx" in formats and weights.in_pytorch(model_name):
        parts.append(
            "`model.onnx` is the same for ONNX runtimes:\n\n"
            + _code(
                "import numpy as np, onnxruntime, PIL.Image, PIL.ImageOps",
                "",
                'session = onnxruntime.InferenceSession("model.onnx")',
                *_view_code(view),
                'print(session.run(["calibrated"], {"images": np.asarray(image)[None]}))',
            )
        )
    if absent := weights.not_written(system, formats):
        lines = (f"- `{file}`: {why}" for file, why in absent.items())
        parts.append("Not in this folder:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _timm_usage(view: View, model_name: str, num_classes: int) -> str:
    if not weights.in_pytorch(model_name):
        return (
            f"`model.safetensors` holds the weights. {text(model_name)} is in no other library: "
            "its backbone's tensors have timm's names of a ResNet, `fusion.*` and `head.*` are of "
            "egmae_jax, whose `models.timm.load` reads the file."
        )
    if not weights.in_timm(model_name):
        return "`model.safetensors` holds the weights in torchvision's names:\n\n" + _code(
            "import safetensors.torch, torchvision",
            "",
            f'model = torchvision.models.get_model("{model_name}", num_classes={num_classes})',
            'model.load_state_dict(safetensors.torch.load_file("model.safetensors"))',
        )
    said = {
        "shorter_side": "It makes the same pixels.",
        "squash": "It makes the same pixels.",
        "pad": "**It does not make the same pixels**: images were padded with black, which timm's "
        "configuration cannot say: do it before.",
    }[view.resize]
    if view.color == "grey":
        said += " That images are made grey it cannot say: do it before."
    return (
        "In timm, with FOLDER the one this file is in; the softmax of its logits is the output "
        f"`probabilities` of the programs. The transform is that of `config.json`. {said}\n\n"
        + _code(
            "import timm",
            "",
            'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
            "transform = timm.data.create_transform(",
            "    **timm.data.resolve_model_data_config(model), is_training=False",
            ")",
        )
    )


def _view_code(view: View) -> list[str]:
    """From a file to the evaluation view, by Pillow."""
    grey = '.convert("L")' if view.color == "grey" else ""
    low, high = view.intensity.of_dataset.get("uint16", (0, 0))
    wide = [
        'if image.mode.startswith("I;16"):  # of 16 bits the high byte',
        "    image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))",
    ]
    if low < high:
        wide = [
            'if image.mode.startswith("I;16"):  # from the range of the data set',
            f"    share = (np.asarray(image, float) - {low:g}) / {high - low:g}",
            "    scaled = np.round(255 * np.clip(share, 0, 1))",
            "    image = PIL.Image.fromarray(scaled.astype(np.uint8))",
        ]
    lines = [
        'image = PIL.ImageOps.exif_transpose(PIL.Image.open("image.png"))',
        *wide,
        f'image = image{grey}.convert("RGB")',
    ]
    size, resized, bilinear = view.size, view.resized, "PIL.Image.Resampling.BILINEAR"
    lines += {
        "squash": [f"image = image.resize(({resized}, {resized}), {bilinear})"],
        "pad": [f"image = PIL.ImageOps.pad(image, ({resized}, {resized}), {bilinear})"],
        "shorter_side": [
            f"size = [{resized} * side // min(image.size) for side in image.size]",
            f"image = image.resize(size, {bilinear})",
        ],
    }[view.resize]
    if view.resize == "shorter_side" or resized != size:
        lines += [
            f"left, top = (round((side - {size}) / 2) for side in image.size)",
            f"image = image.crop((left, top, left + {size}, top + {size}))",
        ]
    return lines


def _limits(run: SavedRun, system: System) -> str:
    said = [
        "For research only. **It is not a medical device** and must not be used for diagnosis or "
        "treatment: it was tested on images of one data set, by nobody independent.",
        "It gives one of its classes to any image, also to one that shows none of them. On images "
        "of other devices, sites or patients it can be much worse than the figures above.",
    ]
    if (noise := run.config.finetune.input_noise) > 0:
        said.append(
            f"It was trained and tested with noise on the input (finetune.input_noise={noise:g}), "
            "which is not in the exported program: the figures above are of noisy images."
        )
    if run.config.model.dtype != "float32":
        said.append(
            f"The run computed in {text(run.config.model.dtype)}; this computes in float32, so "
            "probabilities can differ in the third digit."
        )
    return "## Intended use and limits\n\n" + "\n".join(f"- {line}" for line in said)


def _citations(run: SavedRun, results: Mapping[str, Any]) -> str:
    paper = _PAPER if any(branch.is_mae for branch in run.branches) else ""
    cited = [text(x) for x in (results["dataset"]["citation"], paper) if x]
    return "## Citations\n\n" + ("\n".join(f"- {x}" for x in cited) or "The data set names none.")


# --- Markdown -------------------------------------------------------------------------------------


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(text, names))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _figure(value: float) -> str:
    return f"{value:.3f}"


def _mean_std(value: Mapping[str, float]) -> str:
    return f"{_figure(value['mean'])} ± {_figure(value['std'])}"
