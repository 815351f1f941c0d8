"""Explains the test images of a finished run: pictures, and how much of the heat is in the lesions.

`egmae explain --help` says what is written. Where the data set has masks of the lesions, all test
images are scored, however many are drawn.
"""

import hashlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text
from ml_collections import ConfigDict

from egmae_jax.core.files import natural_key, write_json
from egmae_jax.data import datasets, images, masks
from egmae_jax.explain import gradcam, localization
from egmae_jax.explain.overlay import Row, contact_sheet, picture_name, write_overlay
from egmae_jax.method import augment
from egmae_jax.run.branches import Branch
from egmae_jax.run.saved_run import Classifier, RunError, SavedRun
from egmae_jax.run.workdir import local_folder

PyTree = Any
_PAGE = 8  # images of a contact sheet
_SCORES = ("heat_in_mask", "pointing_game", "area_share", "pointing_game_chance")
logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """A test image as it is evaluated."""

    file: str  # relative to the data folder
    label: int
    pixels: np.ndarray  # uint8 [S, S, 3 or 1]
    mask: np.ndarray | None  # bool [S, S]; None without a mask that can be used


class Explained(NamedTuple):
    """An example, and what the model says of it."""

    example: Example
    layer: gradcam.Layer  # that the heat is of
    heat: np.ndarray  # float32 [S, S]
    predicted: int
    probability: float  # of the predicted class


def explain_run(
    workdir: Path,
    out: Path,
    *,
    branch: str | None = None,
    round_index: int = 0,
    layer: str | None = None,
    max_images: int = 24,
    batch: int = 16,
    tolerance: float = 0,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Explains the predicted class of a branch's test images, and writes what the module says.

    Args:
        workdir: of a run whose fine-tuning has finished.
        out: folder for the results.
        branch: of the run, such as 'mae' or 'resnet18'; None: 'mae', or without it the first.
        round_index: of the run.
        layer: see `gradcam.gradcam`.
        max_images: that pictures are made of.
        batch: images that go through the network together.
        tolerance: of the pointing game, in pixels of the evaluation view.
        data_dir: where the images are now, if not where the run found them.

    Returns:
        The content of gradcam.json.

    Raises:
        RunError: see its message.
        DamagedFileError, CheckpointError: a file of the workdir cannot be read.
    """
    if min(batch, max_images) < 1 or tolerance < 0:
        raise RunError(
            f"batch is {batch}, images {max_images}, tolerance {tolerance}; the first two must be "
            "positive, the last not negative."
        )
    run = SavedRun(workdir)
    config, chosen, classes = run.config, run.branch(branch), run.classes()
    rows = sorted((r for r in run.split(round_index) if r["split"] == "test"), key=_by_class)
    classifier = run.classifier(chosen, round_index)
    at = gradcam.layer_at(classifier.model, config.data.image_size, layer)
    folder = _images_folder(data_dir or config.data.dir)

    shown = {rows[i]["file"] for i in spread([row["label"] for row in rows], max_images)}
    scored = datasets.get(config.data.name).masks is not None
    rows = rows if scored else [row for row in rows if row["file"] in shown]
    logger.info("Explaining %d test images at %s", len(rows), at)
    unusable: list[str] = []
    examples = _read_examples(folder, run, rows, classes, unusable)
    files, pictures = [], []
    for found in _explain(classifier, examples, at, min(batch, len(rows))):
        files.append(_figures(found, classes, tolerance))
        if found.example.file in shown:
            _write_overlay(out / "overlays", found)
            pictures.append(_sheet_row(found, classes, files[-1], masked=scored))
    for start in range(0, len(pictures), _PAGE):
        page = pictures[start : start + _PAGE]
        contact_sheet(page, out / f"sheet_{start // _PAGE}.png", note=str(at))

    content = {
        "workdir": str(workdir),
        "data_dir": str(folder),
        "branch": chosen.name,
        "round": round_index,
        "weights": str(classifier.weights),
        "model": chosen.model_name,
        "layer": at.address,
        "grid": list(at.grid),
        "part": at.part,
        "explained": _explained(config),
        "images": len(files),
        "right": sum(row["predicted"] == row["true"] for row in files),
        "masks": _summary(files, unusable, tolerance) if scored else None,
        "files": files,
    }
    write_json(out / "gradcam.json", content)
    return content


def explain_images(
    run: SavedRun,
    branch: Branch,
    round_index: int,
    rows: Sequence[Mapping[str, Any]],
    data_dir: Path,
    *,
    batch: int = 16,
) -> Iterator[Explained]:
    """Explains the predicted class of some images, at `gradcam.default_layer`.

    Args:
        run: whose fine-tuning has finished.
        branch: to explain.
        round_index: of the run.
        rows: of splits.json.
        data_dir: where the images are.
        batch: images that go through the network together.

    Raises:
        RunError: an image is not there, or not the one of splits.json.
        CheckpointError: the weights cannot be read.
    """
    classifier = run.classifier(branch, round_index)
    examples = _read_examples(_images_folder(data_dir), run, rows, run.classes(), [])
    at = gradcam.layer_at(classifier.model, run.config.data.image_size)
    return _explain(classifier, examples, at, min(batch, max(1, len(rows))))


def explain_rounds(workdir: Path, out: Path, **options: Any) -> dict[str, Any]:
    """`explain_run` of every round, each into a folder of its own, and all of their scores pooled.

    With folds every image is explained by the network that was not trained on it.

    Args:
        workdir: of a run whose fine-tuning has finished.
        out: folder for the results.
        **options: of `explain_run`.

    Returns:
        The content of gradcam.json, whose "files" are those of all rounds.

    Raises:
        RunError, DamagedFileError, CheckpointError: as `explain_run`.
    """
    each = [
        explain_run(workdir, out / f"round_{i}", round_index=i, **options)
        for i in SavedRun(workdir).rounds
    ]
    files = [{"round": found["round"], **row} for found in each for row in found["files"]]
    content = each[0] | {
        "round": "all",
        "weights": [found["weights"] for found in each],
        "images": len(files),
        "right": sum(found["right"] for found in each),
        "files": files,
    }
    if content["masks"] is not None:
        unusable = [x for found in each for x in found["masks"]["left_out"]["unusable_masks"]]
        content["masks"] = _summary(files, unusable, content["masks"]["tolerance"])
    write_json(out / "gradcam.json", content)
    return content


# --- The run --------------------------------------------------------------------------------------


def _images_folder(data_dir: Path | str) -> Path:
    folder = local_folder(data_dir, "--data_dir")
    if not os.path.isdir(folder):
        raise RunError(f"There is no folder {folder}; --data_dir says where the images are.")
    return folder


def _explained(config: ConfigDict) -> str:
    """What the heat is of, in words."""
    if not config.finetune.input_noise > 0:
        return "the predicted class"
    return (
        "the predicted class of the clean image; the run trained and tested with noise on it "
        f"(finetune.input_noise={config.finetune.input_noise:g})"
    )


def _by_class(row: Mapping[str, Any]) -> tuple:
    return row["label"], natural_key(row["file"])


def spread(labels: Sequence[str], count: int) -> list[int]:
    """Indices of at most so many images, the same number of each class as far as there are."""
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    share = dict.fromkeys(members, 0)
    for _ in range(min(count, len(labels))):
        label = min((m for m in members if share[m] < len(members[m])), key=lambda m: share[m])
        share[label] += 1
    chosen = []
    for label, indices in members.items():
        places = np.linspace(0, len(indices) - 1, share[label]).round().astype(int)
        chosen += [indices[i] for i in places]
    return sorted(chosen)


def _read_examples(
    folder: Path,
    run: SavedRun,
    rows: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    unusable: list[str],
) -> Iterator[Example]:
    """The images, with their masks where there are any; adds to `unusable` the masks that fail."""
    data = run.config.data
    dataset = datasets.get(data.name)
    for row in rows:
        path = folder / row["file"]
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise RunError(
                f"{path} cannot be read ({error.strerror}); --data_dir says where the images are."
            ) from None
        if hashlib.sha256(encoded).hexdigest() != row["sha256"]:
            raise RunError(f"{path} is not the file that the run was tested on.")
        image = images.decode(encoded, data.color, run.intensity)
        resized = run.config.evaluation.resize
        view = images.evaluation_view(image, data.resize, data.image_size, resized)
        mask = None
        try:
            mask = masks.lesion_mask(
                folder,
                row["file"],
                dataset,
                image_shape=(image.height, image.width),
                resize=data.resize,
                image_size=data.image_size,
                resized=resized,
            )
        except masks.MaskError as error:
            logger.warning("%s The image is not scored.", error)
            unusable.append(f"{row['file']}: {error}")
        yield Example(row["file"], classes.index(row["label"]), images.to_array(view), mask)


def _explain(
    classifier: Classifier, examples: Iterator[Example], layer: gradcam.Layer, batch: int
) -> Iterator[Explained]:
    """Goes through the examples in batches of one size, and so compiles once."""
    while waiting := list(itertools.islice(examples, batch)):
        pixels = np.stack([example.pixels for example in waiting])
        # The last batch is filled up with its first image.
        indices = np.where(np.arange(batch) < len(waiting), np.arange(batch), 0)
        found = jax.device_get(
            gradcam.explain(
                classifier.model,
                classifier.variables,
                augment.normalize(jnp.asarray(pixels[indices])),
                layer=layer.address,
            )
        )
        probabilities = np.asarray(jax.nn.softmax(found.logits))
        for k, example in enumerate(waiting):
            label = int(found.classes[k])
            probability = float(probabilities[k, label])
            yield Explained(example, layer, found.heat[k], label, probability)


# --- Figures and pictures -------------------------------------------------------------------------


def _figures(found: Explained, classes: Sequence[str], tolerance: float) -> dict[str, Any]:
    """A row of gradcam.json; its scores are null where there is no lesion, or no heat."""
    mask, heat = found.example.mask, found.heat
    scores: dict[str, float | None] = dict.fromkeys(_SCORES)
    lesion = mask is not None and bool(mask.any())
    if mask is not None and lesion and heat.any():
        values = (
            localization.heat_in_mask(heat, mask),
            localization.pointing_game(heat, mask, tolerance=tolerance),
            localization.area_share(mask),
            localization.area_share(localization.widen(mask, tolerance)),
        )
        scores = {name: round(float(x), 6) for name, x in zip(_SCORES, values, strict=True)}
    return {
        "file": found.example.file,
        "true": classes[found.example.label],
        "predicted": classes[found.predicted],
        "probability": round(found.probability, 6),
        "lesion": None if mask is None else lesion,
        "heat": bool(heat.any()),
        **scores,
    }


def _summary(
    files: Sequence[Mapping[str, Any]], unusable: Sequence[str], tolerance: float
) -> dict[str, Any]:
    """Means over the images with a lesion; what is left out is counted."""
    scored = [row for row in files if row["heat_in_mask"] is not None]
    right = [row for row in scored if row["predicted"] == row["true"]]
    groups = {"all": scored}
    groups |= {"right": right, "wrong": [row for row in scored if row not in right]}
    by_class = {
        name: _means([row for row in scored if row["true"] == name])
        for name in sorted({row["true"] for row in scored})
    }
    return {
        "tolerance": tolerance,
        **{name: _means(rows) for name, rows in groups.items()},
        "by_class": by_class,
        "left_out": {
            "without_lesion": sum(row["lesion"] is False for row in files),
            "without_heat": sum(bool(row["lesion"]) and not row["heat"] for row in files),
            "without_mask": sum(row["lesion"] is None for row in files) - len(unusable),
            "unusable_masks": list(unusable),
        },
    }


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means = {name: float(np.mean([row[name] for row in rows])) if rows else None
             for name in _SCORES}  # fmt: skip
    return {"images": len(rows), **means}


def _write_overlay(folder: Path, found: Explained) -> None:
    path = folder / found.example.file
    path = path.with_name(picture_name(path.name))
    example = found.example
    text = f"Grad-CAM at {found.layer}"
    write_overlay(path, example.pixels, found.heat, example.mask, text=text)


def _sheet_row(
    found: Explained, classes: Sequence[str], figures: Mapping[str, Any], *, masked: bool
) -> Row:
    """`masked`: the data set has masks."""
    note = ""
    if figures["heat_in_mask"] is not None:
        note = (
            f"heat in lesion: {figures['heat_in_mask']:.0%}\n"
            f"lesion's area: {figures['area_share']:.0%}\n"
            f"hottest pixel: {'inside' if figures['pointing_game'] >= 0.5 else 'outside'}"
        )
    elif not figures["heat"]:
        note = "no heat: nothing here\nspeaks for the class"
    elif figures["lesion"] is False:
        note = "no lesion in view"
    elif masked:
        note = "no mask that can be used"
    return Row(
        image=found.example.pixels,
        heat=found.heat,
        mask=found.example.mask,
        title=Path(found.example.file).stem,
        true=classes[found.example.label],
        predicted=classes[found.predicted],
        probability=found.probability,
        note=note,
    )


def show(content: Mapping[str, Any], out: Path) -> None:
    """Prints the means, at most 80 columns wide but for the folder."""
    terminal = rich.console.Console(highlight=False, emoji=False)
    layer = gradcam.Layer(content["layer"], tuple(content["grid"]), content["part"])
    terminal.print(
        f"\n{content['model']}, branch {content['branch']!r}, round {content['round']}: "
        f"{content['images']} test images,\n{content['right']} of them right, explained at\n"
        f"{layer}",
        markup=False,
        soft_wrap=True,
    )
    terminal.print(f"Explained: {content['explained']}.", markup=False)
    found = content["masks"]
    if found is None:
        terminal.print("The data set has no masks of lesions: nothing to score.")
    else:
        groups = {"all": found["all"], **found["by_class"]}
        groups |= {"predicted right": found["right"], "predicted wrong": found["wrong"]}
        table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
        table.add_column("", overflow="fold")
        for title in ("Images", "Heat in lesion", "Pointing game", "Lesion's area"):
            table.add_column(title, justify="right", no_wrap=True)
        for name, row in groups.items():
            if row["images"]:
                cells = (f"{row[score]:.3f}".lstrip("0") for score in _SCORES[:3])
                table.add_row(rich.text.Text(name), str(row["images"]), *cells)
        terminal.print(table)
        left_out = found["left_out"]
        counts = {**left_out, "unusable_masks": len(left_out["unusable_masks"])}
        said = [f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n]
        terminal.print("Heat that knows nothing of the lesions scores their area.")
        terminal.print(f"Left out: {', '.join(said) or 'none'}.", markup=False)
    terminal.print(f"Pictures and gradcam.json are in {out}", markup=False, soft_wrap=True)
