"""What is odd about a data set.

Prints and saves what a split has to know and a reader of the results too: counts, copies within and
across classes and official parts, groups, sizes, modes, whether what is no disease tells the class
alone, what to do about each finding, and contact sheets of each class and of all near-duplicates.
"""

import collections
import re
import runpy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import rich.console
import rich.table
import rich.text

from egmae_jax.core.files import write_json
from egmae_jax.data import contact_sheets, duplicates, pixels, splits
from egmae_jax.data.contact_sheets import Section
from egmae_jax.data.findings import confounders, findings
from egmae_jax.data.prepare import Prepared

_SHOWN = 20  # conflicts that are printed
_OF_CLASS = 2 * contact_sheets.COLUMNS  # images of each class that are drawn
_PAGES = 99  # of near-duplicates that are drawn: of more groups the gravest
_MOST_PAIRS = 100_000  # that audit.json lists: some ten megabytes


def audit(prepared: Prepared) -> dict[str, Any]:
    """Everything the audit says, as JSON-like values."""
    labels, names = prepared.labels, np.array(prepared.classes)
    identical = _groups(prepared.pixel_hashes)
    similar = near_duplicate_groups(prepared)
    folders = np.array([str(Path(file).parent) for file in prepared.files])
    crossing = splits.conflicts(labels, prepared.pairs)
    parts = np.array([part or "none" for part in prepared.official])
    leaks = prepared.pairs[parts[prepared.pairs[:, 0]] != parts[prepared.pairs[:, 1]]]
    sizes = collections.Counter(f"{w}x{h}" for h, w in prepared.sizes.tolist())
    of_groups = np.unique(prepared.groups, return_counts=True)[1]
    found = {
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
            # In the order, and by the numbers from 1, of the contact sheets.
            "members": [[prepared.files[i] for i in members] for members in similar],
            "listed": [
                [prepared.files[i], prepared.files[j]] for i, j in prepared.pairs[:_MOST_PAIRS]
            ],
        },
        # What is split: images of one patient or lesion and near-duplicates are one group, and
        # every other image is one of its own.
        "groups": {
            "number": len(of_groups),
            "of_one": int((of_groups == 1).sum()),
            "of_several": int((of_groups > 1).sum()),
            "images_of_several": int(of_groups[of_groups > 1].sum()),
            "largest": int(of_groups.max()),
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
    return found | {"findings": [each._asdict() for each in findings(prepared, found)]}


def near_duplicate_groups(prepared: Prepared) -> list[np.ndarray]:
    """Indices of images that pairs of near-duplicates join, two or more each, the gravest first.

    First those of several classes, then those of several official parts, then the largest.
    """

    def rank(members: np.ndarray) -> tuple[bool, bool, int, int]:
        classes, parts = prepared.labels[members], prepared.official[members]
        alike = len(np.unique(classes)) == 1, len(np.unique(parts)) == 1
        return (*alike, -len(members), int(members[0]))

    return sorted(_groups(_near_groups(prepared)), key=rank)


def save(prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Writes audit.json and contact sheets, and returns the audit.

    classes_01.png and those that follow show some images of each class, near_duplicates_01.png and
    so on all groups of near-duplicates, those of several classes in red; of more than 99 pages the
    first, which the audit says.
    """
    found = audit(prepared)
    folder.mkdir(parents=True, exist_ok=True)
    sheets = list(
        _save_sheets(folder, "classes", contact_sheets.pages(prepared, _classes(prepared), _PAGES))
    )
    similar = list(_similar(prepared))
    drawn = _save_sheets(folder, "near_duplicates", contact_sheets.pages(prepared, similar, _PAGES))
    found["sheets"] = [*sheets, *drawn]
    write_json(folder / "audit.json", found)
    return found


def _classes(prepared: Prepared) -> Iterator[Section]:
    rng = np.random.default_rng(0)
    for label, name in enumerate(prepared.classes):
        members = np.flatnonzero(prepared.labels == label)
        drawn = np.sort(rng.permutation(members)[:_OF_CLASS])
        yield Section(f"{name}: {len(drawn)} of {len(members)} images", drawn.tolist())


def _similar(prepared: Prepared) -> Iterator[Section]:
    for number, members in enumerate(near_duplicate_groups(prepared), start=1):
        across = len(np.unique(prepared.labels[members])) > 1
        leaks = len(np.unique(prepared.official[members])) > 1
        title = f"{number}: {len(members)} images"
        title += ", different labels" if across else ", several parts" if leaks else ""
        yield Section(title, members.tolist(), across)


def _save_sheets(folder: Path, name: str, pages: Iterable[PIL.Image.Image]) -> Iterator[str]:
    """Writes pages as <name>_01.png and so on, and deletes those of an earlier audit."""
    for old in folder.glob("*.png"):
        # 'classes.png' and 'conflicts.png' are an older version's.
        if re.fullmatch(rf"{name}(_\d\d)?\.png|conflicts\.png", old.name):
            old.unlink()
    for number, page in enumerate(pages, start=1):
        page.save(folder / f"{name}_{number:02}.png")
        yield f"{name}_{number:02}.png"


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
        _said_of_groups(found["groups"]),
        f"sizes: {sizes['different']} different, most often "
        + ", ".join(f"{size} ({n})" for size, n in sizes["most_frequent"].items()),
    ]
    terminal.print("\n".join(lines), markup=False)
    _show_pixels(found["pixels"], terminal)
    for first, second in near["conflicts"][:_SHOWN]:
        terminal.print(f"  conflict: {first} | {second}", markup=False, soft_wrap=True)
    if len(near["conflicts"]) > _SHOWN:
        terminal.print(f"  and {len(near['conflicts']) - _SHOWN} more conflicts in audit.json")
    for each in found["findings"]:
        terminal.print()
        terminal.print(each["finding"], style="bold yellow", markup=False, soft_wrap=True)
        terminal.print(f"  -> {each['advice']}", markup=False, soft_wrap=True)
    terminal.print()
    sheets = found["sheets"]
    terminal.print(f"Saved in {folder}: audit.json, {', '.join(_ranges(sheets))}", markup=False)
    if len([name for name in sheets if name.startswith("near")]) == _PAGES:
        terminal.print(
            f"Of {near['groups']} groups of near-duplicates the gravest are drawn; audit.json has "
            "them all."
        )
    if near["pairs"] > len(near["listed"]):
        terminal.print(
            f"audit.json lists {len(near['listed'])} of {near['pairs']} pairs, but all groups."
        )


def _said_of_groups(groups: dict[str, int]) -> str:
    return (
        f"{groups['number']} groups, which a split keeps whole: {groups['of_several']} of several "
        f"images (near-duplicates, or of one patient or lesion; {groups['images_of_several']} "
        f"images, at most {groups['largest']} in one), {groups['of_one']} of one image"
    )


def _ranges(sheets: Sequence[str]) -> Iterator[str]:
    """Of a sheet's pages the first and the last."""
    for name in ("classes", "near_duplicates"):
        of_name = [sheet for sheet in sheets if sheet.startswith(name)]
        if of_name:
            yield of_name[0] if len(of_name) == 1 else f"{of_name[0]} to {of_name[-1]}"


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


if __name__ == "__main__":
    runpy.run_module("egmae_jax.commands.audit", run_name="__main__")
