"""Audit of a data set, for problems that affect training or its results.

The audit counts images, groups, sizes and modes, and copies within and across classes and official
parts; tests whether features that are unrelated to the disease predict the class; gives advice on
each problem; and draws contact sheets of each class and of all near-duplicates.
"""

import collections
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import rich.table

from egmae_jax.core import console
from egmae_jax.core.errors import shorten_list
from egmae_jax.core.files import write_json
from egmae_jax.data import contact_sheets, duplicates, splits
from egmae_jax.data.contact_sheets import Section
from egmae_jax.data.findings import confounders, findings
from egmae_jax.data.prepare import Prepared

_IMAGES_PER_CLASS = 2 * contact_sheets.COLUMNS  # images of each class on the contact sheets
_MAX_PAIRS = 100_000  # largest number of pairs in audit.json, which take some ten megabytes


def audit(prepared: Prepared) -> dict[str, Any]:
    """Audits a data set; returns all results as JSON-like values, the content of audit.json."""
    labels, names = prepared.labels, prepared.classes
    parts = np.array([part or "none" for part in prepared.official])
    sizes = collections.Counter(f"{w}x{h}" for h, w in prepared.sizes.tolist())
    group_sizes = np.unique(prepared.groups, return_counts=True)[1]
    result = {
        "dataset": prepared.title,
        "images": len(labels),
        "found": prepared.num_found,
        "other_classes": dict(prepared.other_classes),
        "unreadable": list(prepared.skipped),
        "counts": {
            part: {
                name: int(((parts == part) & (labels == label)).sum())
                for label, name in enumerate(names)
            }
            for part in ("train", "validation", "test", "none")
            if (parts == part).any()
        },
        **_copies(prepared, parts),
        "groups": {
            "number": len(group_sizes),
            "of_one": int((group_sizes == 1).sum()),
            "of_several": int((group_sizes > 1).sum()),
            "images_of_several": int(group_sizes[group_sizes > 1].sum()),
            "largest": int(group_sizes.max()),
        },
        "sizes": {
            "different": len(sizes),
            "smallest": prepared.sizes.min(axis=0)[::-1].tolist(),
            "largest": prepared.sizes.max(axis=0)[::-1].tolist(),
            "most_frequent": dict(sizes.most_common(5)),
        },
        "modes": {
            name: dict(collections.Counter(prepared.modes[labels == label].tolist()))
            for label, name in enumerate(names)
        },
        "pixels": _pixels(prepared),
        "confounders": confounders(prepared),
    }
    return result | {"findings": [each._asdict() for each in findings(prepared, result)]}


def _copies(prepared: Prepared, parts: np.ndarray) -> dict[str, Any]:
    """Returns the results on identical and near-identical images."""
    files, pairs = prepared.files, prepared.pairs
    identical = duplicates.members(prepared.pixel_hashes)
    near = near_duplicate_groups(prepared)
    conflicts = splits.conflicts(prepared.labels, pairs)

    def num_crossing(values: np.ndarray) -> int:
        return sum(len(np.unique(values[members])) > 1 for members in identical)

    return {
        "identical_pixels": {
            "groups": len(identical),
            "extra_copies": sum(len(members) - 1 for members in identical),
            "groups_across_folders": num_crossing(np.array([str(Path(x).parent) for x in files])),
            "groups_across_classes": num_crossing(prepared.labels),
            "groups_across_official_parts": num_crossing(parts),
        },
        "near_duplicates": {
            "pairs": len(pairs),
            "groups": len(near),
            "largest_group": max(map(len, near), default=1),
            "pairs_across_classes": len(conflicts),
            "pairs_across_official_parts": int((parts[pairs[:, 0]] != parts[pairs[:, 1]]).sum()),
            "conflicts": [[files[i], files[j]] for i, j in conflicts],
            # In the order of the contact sheets, which number the groups from 1.
            "members": [[files[i] for i in members] for members in near],
            "listed": [[files[i], files[j]] for i, j in pairs[:_MAX_PAIRS]],
        },
    }


def _pixels(prepared: Prepared) -> dict[str, Any]:
    """Returns the results on the pixel values, both as stored and as decoded."""
    values, intensity = prepared.pixels, prepared.intensity
    used = values.bits_used
    return {
        "intensity_range": intensity.rule,
        "range_of_dataset": {kind: list(ends) for kind, ends in intensity.of_dataset.items()},
        "bits": _count(values.bits),
        "bits_used": {  # for each number of declared bits
            str(bits): _count(used[values.bits == bits]) for bits in np.unique(values.bits).tolist()
        },
        "grey_levels": {
            "least": int(values.levels.min()),
            "median": float(np.median(values.levels)),
            "most": int(values.levels.max()),
        },
        "share_below_32_levels": float(values.has_few_levels.mean()),
        "share_below_a_tenth_of_the_range": float(values.is_narrow.mean()),
        "odd": [
            {
                "file": prepared.files[i],
                "bits": int(values.bits[i]),
                "bits_used": int(used[i]),
                "stored": values.stored[i].tolist(),
                "grey_levels": int(values.levels[i]),
                "greys": values.greys[i].tolist(),
            }
            for i in np.flatnonzero(values.is_odd).tolist()
        ],
    }


def _count(values: np.ndarray) -> dict[str, int]:
    """Returns {value: number of occurrences}, in ascending order of the values."""
    distinct, counts = np.unique(values, return_counts=True)
    return dict(zip(map(str, distinct.tolist()), counts.tolist(), strict=True))


def near_duplicate_groups(prepared: Prepared) -> list[np.ndarray]:
    """Returns the groups of near-duplicates as indices of images, the most serious first.

    Groups with several classes come first, then those in several official parts, then the largest.
    """

    def rank(members: np.ndarray) -> tuple[bool, bool, int, int]:
        classes, parts = prepared.labels[members], prepared.official[members]
        is_uniform = len(np.unique(classes)) == 1, len(np.unique(parts)) == 1
        return (*is_uniform, -len(members), int(members[0]))

    return sorted(prepared.near_duplicates, key=rank)


def save(prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Writes audit.json and the contact sheets, and returns the results of the audit.

    classes_01.png and the following pages show some images of each class. near_duplicates_01.png
    and the following pages show the groups of near-duplicates, in red if they have several classes.

    Args:
        prepared: data set to audit.
        folder: folder for the files; contact sheets of an earlier audit are deleted.
    """
    result = audit(prepared)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {
        "classes": _class_sections(prepared),
        "near_duplicates": _near_duplicate_sections(prepared),
    }
    result["sheets"] = [
        name
        for kind, sections in kinds.items()
        for name in _save_sheets(folder, kind, contact_sheets.pages(prepared, sections))
    ]
    write_json(folder / "audit.json", result)
    return result


def _class_sections(prepared: Prepared) -> Iterator[Section]:
    rng = np.random.default_rng(0)
    for label, name in enumerate(prepared.classes):
        members = np.flatnonzero(prepared.labels == label)
        drawn = np.sort(rng.permutation(members)[:_IMAGES_PER_CLASS])
        yield Section(f"{name}: {len(drawn)} of {len(members)} images", drawn.tolist())


def _near_duplicate_sections(prepared: Prepared) -> Iterator[Section]:
    for number, members in enumerate(near_duplicate_groups(prepared), start=1):
        title = f"{number}: {len(members)} images"
        if is_conflict := len(np.unique(prepared.labels[members])) > 1:
            title += ", different labels"
        elif len(np.unique(prepared.official[members])) > 1:
            title += ", several parts"
        yield Section(title, members.tolist(), is_conflict)


def _save_sheets(folder: Path, kind: str, pages: Iterable[PIL.Image.Image]) -> Iterator[str]:
    """Writes pages as <kind>_01.png etc., deletes those of an earlier audit, and yields names."""
    for old in folder.glob(f"{kind}_[0-9][0-9].png"):
        old.unlink()
    for number, page in enumerate(pages, start=1):
        page.save(folder / f"{kind}_{number:02}.png")
        yield f"{kind}_{number:02}.png"


def show(result: dict[str, Any], folder: Path) -> None:
    """Prints the results of an audit, which `save` has written to `folder`."""
    terminal = console.terminal
    terminal.print(f"\n{result['dataset']}: {result['images']} images", style="bold")
    terminal.print(_table(result))
    terminal.print("\n".join(_summary(result)), soft_wrap=True)
    for each in result["findings"]:
        terminal.print()
        terminal.print(each["finding"], style="bold yellow", soft_wrap=True)
        terminal.print(f"  -> {each['advice']}", soft_wrap=True)
    sheets = shorten_list(result["sheets"])
    terminal.print(f"\nSaved in {folder}: audit.json, {sheets}", soft_wrap=True)


def _table(result: dict[str, Any]) -> rich.table.Table:
    """Returns a table of the number of images per class and official part, and of the modes."""
    parts = ["images" if part == "none" else part for part in result["counts"]]
    table = console.table(["Class"], parts)
    table.add_column("modes")
    for name, modes in result["modes"].items():
        counts = (str(part[name]) for part in result["counts"].values())
        stored = ", ".join(f"{count} {mode}" for mode, count in modes.items())
        table.add_row(name, *counts, stored)
    return table


def _summary(result: dict[str, Any]) -> Iterator[str]:
    same, near, groups = (result[x] for x in ("identical_pixels", "near_duplicates", "groups"))
    sizes, values = result["sizes"], result["pixels"]
    yield splits.account(
        {"audited": result["images"]},
        {},
        len(result["unreadable"]),
        result["other_classes"],
    )
    yield (
        f"identical pixels: {same['groups']} groups with {same['extra_copies']} extra copies; "
        f"{same['groups_across_folders']} groups are in several folders, "
        f"{same['groups_across_classes']} in several classes, "
        f"{same['groups_across_official_parts']} in several official parts"
    )
    yield (
        f"near-duplicates: {near['pairs']} pairs in {near['groups']} groups of at most "
        f"{near['largest_group']} images; {near['pairs_across_classes']} pairs have two classes, "
        f"{near['pairs_across_official_parts']} two official parts"
    )
    yield (
        f"{groups['number']} groups, each of which a split keeps in one part: "
        f"{groups['of_several']} of several images (near-duplicates, or images of one patient or "
        f"lesion; {groups['images_of_several']} images, at most {groups['largest']} per group), "
        f"{groups['of_one']} of one image"
    )
    frequent = ", ".join(f"{size} ({count})" for size, count in sizes["most_frequent"].items())
    yield f"sizes: {sizes['different']} different, most frequent {frequent}"
    yield "pixels: " + "; ".join(
        f"{declared} bits per value ({count} images), bits used: "
        + ", ".join(f"{bits} ({n})" for bits, n in values["bits_used"][declared].items())
        for declared, count in values["bits"].items()
    )
    levels = values["grey_levels"]
    yield (
        f"grey levels after decoding: {levels['least']} to {levels['most']}, median "
        f"{levels['median']:g}"
    )
