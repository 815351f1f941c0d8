"""What is wrong with a data set: python -m egmae_jax.data.audit --config=configs/busi.py

Prints and saves what a split has to know and a reader of the results too: counts, copies within and
across classes and official parts, groups, sizes, modes, whether size or mode alone tell the class,
and contact sheets of each class and of copies with different labels.
"""

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps
import rich.console
import rich.table
import rich.text
from absl import app, flags
from ml_collections import config_flags
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from egmae_jax import config as configs
from egmae_jax import console
from egmae_jax.data import duplicates, images, pixels, splits
from egmae_jax.data.prepare import Prepared, prepare
from egmae_jax.files import require_writable, storage_errors_told, write_json

_SHOWN = 20  # conflicts that are printed
_TILE = 96  # pixels of a side in contact sheets
_CAPTION = 12  # pixels below a tile
_COLUMNS = 10
_SUSPICIOUS = 0.1  # balanced accuracy above chance from which a confounder is worth a warning


def audit(prepared: Prepared) -> dict[str, Any]:
    """Everything the audit says, as JSON-like values."""
    labels, names = prepared.labels, np.array(prepared.classes)
    identical = _groups(prepared.pixel_hashes)
    similar = [members for members in _groups(_near_groups(prepared)) if len(members) > 1]
    folders = np.array([str(Path(file).parent) for file in prepared.files])
    crossing = splits.conflicts(labels, prepared.pairs)
    parts = np.array([part or "none" for part in prepared.official])
    leaks = prepared.pairs[parts[prepared.pairs[:, 0]] != parts[prepared.pairs[:, 1]]]
    sizes = collections.Counter(f"{w}x{h}" for h, w in prepared.sizes.tolist())
    return {
        "dataset": prepared.title,
        "images": len(labels),
        "found": prepared.num_found,
        "other_classes": dict(prepared.other_classes),
        "unreadable": list(prepared.skipped),
        "counts": {
            part: _count(names[labels[parts == part]], prepared.classes)
            for part in dict.fromkeys(("train", "validation", "test", "none"))
            if (parts == part).any()
        },
        "identical_pixels": {
            "groups": len(identical),
            "extra_copies": sum(len(members) - 1 for members in identical),
            "groups_across_folders": _crossing(identical, folders),
            "groups_across_classes": _crossing(identical, labels),
            "groups_across_official_parts": _crossing(identical, parts),
        },
        "near_duplicates": {
            "pairs": len(prepared.pairs),
            "groups": len(similar),
            "largest_group": max(map(len, similar), default=1),
            "pairs_across_classes": len(crossing),
            "pairs_across_official_parts": len(leaks),
            "conflicts": [[prepared.files[i], prepared.files[j]] for i, j in crossing],
        },
        "groups": {
            "number": len(np.unique(prepared.groups)),
            "largest": int(np.bincount(prepared.groups).max()),
        },
        "sizes": {
            "different": len(sizes),
            "smallest": prepared.sizes.min(axis=0)[::-1].tolist(),
            "largest": prepared.sizes.max(axis=0)[::-1].tolist(),
            "most_frequent": dict(sizes.most_common(5)),
        },
        "modes": {
            name: dict(collections.Counter(prepared.modes[labels == label].tolist()))
            for label, name in enumerate(prepared.classes)
        },
        "pixels": pixels.describe(prepared.files, prepared.pixels, prepared.intensity),
        "confounders": confounders(prepared),
    }


def confounders(prepared: Prepared) -> dict[str, float]:
    """How well size and mode alone tell the class: balanced accuracy, cross-validated.

    A shallow tree predicts the class from height, width and mode, from each alone and together.
    Chance is 1 / number of classes; what lies far above it, a network can learn instead of the
    disease.
    """
    _, modes = np.unique(prepared.modes, return_inverse=True)
    features = {"size": prepared.sizes, "mode": np.eye(modes.max() + 1)[modes]}
    features["size and mode"] = np.concatenate(list(features.values()), axis=1)
    folds = min(5, int(np.bincount(prepared.labels).min()))
    if folds < 2:
        return {}
    scores = {"chance": 1 / len(prepared.classes)}
    for name, values in features.items():
        tree = DecisionTreeClassifier(max_depth=6, class_weight="balanced", random_state=0)
        split = StratifiedKFold(folds, shuffle=True, random_state=0)
        predicted = cross_val_predict(tree, values, prepared.labels, cv=split)
        scores[name] = float(balanced_accuracy_score(prepared.labels, predicted))
    return scores


def contact_sheet(
    prepared: Prepared, rows: Iterable[Sequence[int] | np.ndarray]
) -> PIL.Image.Image:
    """Thumbnails of images over their classes' names, a row for each sequence of indices."""
    rows = [list(row) for row in rows]
    width = max(map(len, rows), default=1)
    height = _TILE + _CAPTION
    sheet = PIL.Image.new("RGB", (width * _TILE, max(len(rows), 1) * height))
    draw = PIL.ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, index in enumerate(row):
            image = images.from_array(prepared.records.pixels(index))
            sheet.paste(PIL.ImageOps.contain(image, (_TILE, _TILE)), (x * _TILE, y * height))
            caption = prepared.classes[prepared.labels[index]][:15]
            draw.text((x * _TILE + 2, y * height + _TILE), caption, fill="white")
    return sheet


def save(prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Writes audit.json, classes.png and, if there are any, conflicts.png; returns the audit."""
    found = audit(prepared)
    write_json(folder / "audit.json", found)
    rng = np.random.default_rng(0)
    of_class = [np.flatnonzero(prepared.labels == k) for k in range(len(prepared.classes))]
    rows = [np.sort(rng.permutation(members)[:_COLUMNS]) for members in of_class]
    contact_sheet(prepared, rows).save(folder / "classes.png")
    conflicts = splits.conflicts(prepared.labels, prepared.pairs)
    (folder / "conflicts.png").unlink(missing_ok=True)
    if len(conflicts):
        contact_sheet(prepared, conflicts[:50]).save(folder / "conflicts.png")
    return found


def show(found: dict[str, Any], folder: Path) -> None:
    """Prints the audit."""
    terminal = rich.console.Console(highlight=False, emoji=False)
    terminal.print(f"\n[bold]{found['dataset']}[/]: {found['images']} images")
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
    table.add_column("Class", overflow="fold")
    for part in found["counts"]:
        table.add_column("images" if part == "none" else part, justify="right")
    table.add_column("modes")
    for name, modes in found["modes"].items():
        counts = (str(part[name]) for part in found["counts"].values())
        stored = ", ".join(f"{n} {mode}" for mode, n in modes.items())
        table.add_row(rich.text.Text(name), *counts, stored)
    terminal.print(table)
    same, near, sizes = found["identical_pixels"], found["near_duplicates"], found["sizes"]
    lines = [
        splits.account(
            {"described here": found["images"]},
            {},
            len(found["unreadable"]),
            found["other_classes"],
        ),
        f"identical pixels: {same['groups']} groups, {same['extra_copies']} extra copies; "
        f"{same['groups_across_folders']} groups span folders, {same['groups_across_classes']} "
        f"classes, {same['groups_across_official_parts']} official parts",
        f"near-duplicates: {near['pairs']} pairs in {near['groups']} groups, the largest of "
        f"{near['largest_group']}; {near['pairs_across_classes']} pairs join two classes, "
        f"{near['pairs_across_official_parts']} two official parts",
        f"groups to keep together (patients, lesions, near-duplicates): "
        f"{found['groups']['number']}, the largest of {found['groups']['largest']}",
        f"sizes: {sizes['different']} different, most often "
        + ", ".join(f"{size} ({n})" for size, n in sizes["most_frequent"].items()),
    ]
    terminal.print("\n".join(lines), markup=False)
    _show_pixels(found["pixels"], terminal)
    for first, second in near["conflicts"][:_SHOWN]:
        terminal.print(f"  conflict: {first} | {second}", markup=False, soft_wrap=True)
    if len(near["conflicts"]) > _SHOWN:
        terminal.print(f"  and {len(near['conflicts']) - _SHOWN} more conflicts in audit.json")
    chance = found["confounders"].get("chance", 1.0)
    for name, score in found["confounders"].items():
        if score > chance + _SUSPICIOUS:
            terminal.print(
                f"[bold yellow]The class shows in {name} alone[/]: balanced accuracy {score:.3f}, "
                f"chance {chance:.3f}"
            )
    terminal.print(f"Saved in {folder}: audit.json and contact sheets", markup=False)


def _show_pixels(found: dict[str, Any], terminal: rich.console.Console) -> None:
    """Prints what the values of the images use, and some of the images that use little."""
    used = "; ".join(
        f"{declared} bits a value ({n} images), used "
        + ", ".join(f"{bits} ({m})" for bits, m in found["bits_used"][declared].items())
        for declared, n in found["bits"].items()
    )
    levels = found["grey_levels"]
    lines = [
        f"pixels: {used}",
        f"grey levels after decoding: {levels['least']} to {levels['most']}, median "
        f"{levels['median']:g}; {found['share_below_32_levels']:.1%} of the images have fewer than "
        f"{pixels.FEW_LEVELS}, {found['share_below_a_tenth_of_the_range']:.1%} use less than a "
        "tenth of the range from black to white",
    ]
    odd = found["odd"]
    for image in odd[:_SHOWN]:
        low, high = image["stored"]
        lines.append(
            f"  few levels or little range: {image['file']}: values {low:g} to {high:g}, "
            f"{image['bits_used']} of {image['bits']} bits, {image['grey_levels']} grey levels "
            f"from {image['greys'][0]} to {image['greys'][1]}"
        )
    if len(odd) > _SHOWN:
        lines.append(f"  and {len(odd) - _SHOWN} more of these in audit.json")
    lines += [f"  {sentence}." for sentence in found["findings"]]
    terminal.print("\n".join(lines), markup=False, soft_wrap=True)


def _near_groups(prepared: Prepared) -> np.ndarray:
    return duplicates.group_ids(len(prepared.labels), prepared.pairs)


def _groups(keys: np.ndarray) -> list[np.ndarray]:
    """Members of every key that two or more images share."""
    order = np.argsort(keys, kind="stable")
    _, starts = np.unique(keys[order], return_index=True)
    return [members for members in np.split(order, starts[1:]) if len(members) > 1]


def _crossing(groups: Iterable[np.ndarray], property_: np.ndarray) -> int:
    return sum(len(np.unique(property_[members])) > 1 for members in groups)


def _count(values: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return {name: int((values == name).sum()) for name in names}


def define_flags() -> None:
    """Of the command; the module can be imported without."""
    config_flags.DEFINE_config_file("config", help_string="Recipe, e.g. configs/busi.py.")
    flags.DEFINE_string("out", None, "Folder for the audit; runs/audit/<data set> if not given.")
    flags.mark_flag_as_required("config")


@console.user_errors()
def main(_: list[str]) -> None:
    """Command line."""
    console.set_up_logging()
    config = flags.FLAGS.config
    data = config.data
    folder = Path(flags.FLAGS.out or Path("runs") / "audit" / data.name)
    configs.check(config, num_devices=1, section="data.")
    require_writable(folder, f"--out={folder}")
    with storage_errors_told(folder):
        prepared = prepare(
            data.name,
            Path(data.dir).expanduser(),
            Path(data.cache_dir).expanduser() / "datasets",
            on_error="skip",
            near_duplicate_threshold=data.near_duplicate_threshold,
            classes=data.classes,
            group_pattern=data.group_pattern,
            intensity_range=data.intensity_range,
        )
        show(save(prepared, folder), folder)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=configs.parse_flags)
