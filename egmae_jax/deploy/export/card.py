"""The model card, README.md: what a model is, how accurate, on what data, and how to call it.

Its sentences are in card.md. Names that makers and users of the data set chose, such as classes,
are text in it and never markup.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from egmae_jax.core.files import REEVALUATE, damaged
from egmae_jax.core.markup import markdown, printable
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
_PROTOCOLS = {
    "grouped": "near-duplicates, and images of a patient or lesion where these are known, are in "
    "one part",
    "official": "the data set's own parts",
    "image_level": "image by image, so that near-duplicates can be in several parts: such figures "
    "are too good",
}
_FUSIONS = {
    "mean": "the mean of their class probabilities",
    "weighted": "a weighted mean of their class probabilities, fitted on validation images",
    "stacked": "a logistic regression on their log-probabilities, fitted on validation images",
}


def card(run: SavedRun, system: System, round_index: int, formats: Sequence[str]) -> str:
    """The text of a model card.

    Args:
        run: run that has been evaluated.
        system: a branch or the ensemble.
        round_index: round of the run.
        formats: formats that are written beside the card.

    Raises:
        DamagedFileError: results.json lacks what belongs in the card.
    """
    results = run.results()
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "text": markdown,
        "figure": "{:.3f}".format,
        "title": lambda metric: TITLES.get(metric, metric),
        "file_name": lambda path: Path(path).name,
    }
    template = environment.from_string(Path(__file__).with_suffix(".md").read_text("utf-8"))
    try:
        return template.render(_content(run, results, system, round_index, formats))
    except (LookupError, TypeError, ValueError, jinja2.UndefinedError) as error:
        reason = "a model card cannot be made of it"
        raise damaged(run.paths.results, reason, error, REEVALUATE) from error


def _content(
    run: SavedRun,
    results: Mapping[str, Any],
    system: System,
    round_index: int,
    formats: Sequence[str],
) -> dict[str, Any]:
    """The variables of card.md."""
    row, dataset = results["rounds"][round_index], results["dataset"]
    branches = [network.branch for network in system.networks]
    model_name = branches[0].model_name
    networks = [f"{markdown(branch.model_name)} (`{branch.name}`)" for branch in branches]
    what = f"the network {networks[0]}"
    if system.fusion is not None:
        how = _FUSIONS[system.fusion.kind]
        what = f"{len(networks)} networks, {', '.join(networks)}, fused by {how}"
    paper = _PAPER if any(branch.is_mae for branch in run.branches) else ""
    absent = weights.not_written(system, formats)
    files = {"model.safetensors", "model.stablehlo", "model.onnx"} - set(absent)
    library = weights.library(model_name)
    for_timm = library == "timm" and "model.safetensors" in files
    return {
        **{"system": system, "dataset": dataset, "round_index": round_index, "round": row},
        **{"rounds": len(results["rounds"]), "branches": branches, "model_name": model_name},
        **{"what": what, "library": library, "files": files, "not_written": absent},
        **{"config": run.config, "pretraining_splits": results["config"]["pretrain"]["splits"]},
        "metadata": _metadata(dataset, system.name, row["test"][system.name], for_timm=for_timm),
        "protocol": _PROTOCOLS[dataset["protocol"]],
        "counts": row.get("counts") or dataset["counts"],
        "intervals": _intervals(dataset, row),
        "scores": row["test"][system.name],
        "summary": results["summary"][system.name],
        "calibration": row["calibration"][system.name],
        "limit": calibration.explain(row["calibration"][system.name]),
        "pretraining_saw_test": results["pretraining_saw_test"],
        "imagenet_weights": results["imagenet_weights"],
        "imagenet_sha256": results["imagenet_sha256"],
        "view_code": "\n".join(_view_code(system.view)),
        "citations": [citation for citation in (dataset["citation"], paper) if citation],
    }


def _metadata(
    dataset: Mapping[str, Any], name: str, scores: Mapping[str, float], *, for_timm: bool
) -> str:
    data = ModelCardData(
        library_name="timm" if for_timm else "jax",
        pipeline_tag="image-classification",
        tags=["medical-imaging", *(["timm"] if for_timm else []), "jax"],
        model_name=f"{dataset['name']} {name}",
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset["name"],
                dataset_name=printable(dataset["title"]),
                dataset_split="test",
                metric_type=metric,
                metric_value=round(scores[metric], 4),
            )
            for metric in ("accuracy", "f1")
        ],
    )
    return data.to_yaml()


def _intervals(dataset: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What the intervals cover, in words."""
    images = sum((row.get("counts") or dataset["counts"])["test"].values())
    classes = dataset["classes"]
    evidence = Evidence(row["groups"], tuple(row["groups_by_class"][name] for name in classes))
    few = too_few(evidence, [markdown(name) for name in classes])
    return (
        f"Intervals: 95 %, by a bootstrap of the {row['groups']} groups (patients, lesions, "
        f"near-duplicates) of the {images} test images; they say nothing of other seeds."
        + (f" **{few}**" if few else "")
    )


def _view_code(view: View) -> list[str]:
    """Lines of Python from a file to the evaluation view, by Pillow."""
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
    size, resized, bilinear = view.size, view.resized, "PIL.Image.Resampling.BILINEAR"
    resize = {
        "squash": [f"image = image.resize(({resized}, {resized}), {bilinear})"],
        "pad": [f"image = PIL.ImageOps.pad(image, ({resized}, {resized}), {bilinear})"],
        "shorter_side": [
            f"size = [{resized} * side // min(image.size) for side in image.size]",
            f"image = image.resize(size, {bilinear})",
        ],
    }[view.resize]
    crop = [
        f"left, top = (round((side - {size}) / 2) for side in image.size)",
        f"image = image.crop((left, top, left + {size}, top + {size}))",
    ]
    return [
        'image = PIL.ImageOps.exif_transpose(PIL.Image.open("image.png"))',
        *wide,
        f'image = image{grey}.convert("RGB")',
        *resize,
        *(crop if view.resize == "shorter_side" or resized != size else []),
    ]
