"""What the entropy guides, drawn and measured.

Draws, image by image and on one sheet, the entropy H of the patches, the noise's sigma, the
corrupted input, the masked patches M and, of a workdir whose pre-training is finished, the
reconstruction and its error. Measures where the noise falls over the whole data set: by class, and,
where the data set has masks of its lesions, inside them, in a ring around them and outside.

A config alone needs no training: then there is no reconstruction.
"""

import difflib
import logging
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core import platform, rng
from egmae_jax.core.files import (
    RESTORE,
    DamagedFileError,
    write_json,
)
from egmae_jax.data import datasets, masks, pipeline, splits
from egmae_jax.data.datasets import DataError
from egmae_jax.data.prepare import Prepared, prepare
from egmae_jax.explain.lesions import (
    draw_lesions,
    measure_image,
    measure_lesion,
    summarize_images,
    summarize_lesions,
)
from egmae_jax.explain.overlay import picture_name
from egmae_jax.explain.panels import Panels, common_scales, compute_panels, draw_sheet
from egmae_jax.run import branches, rules
from egmae_jax.run import config as configs
from egmae_jax.run.saved_run import RunError
from egmae_jax.run.workdir import Paths, require_same_run
from egmae_jax.training import pretrain

logger = logging.getLogger(__name__)


class Source:
    """The images of a config in their evaluation view, and how pre-training treats them.

    Args:
        config: of the run.
        workdir: of a run whose pre-training is finished; None where nothing is trained.
    """

    def __init__(self, config: ConfigDict, workdir: Path | None):
        rules.check(config, num_devices=1)
        self.config = FrozenConfigDict(config)
        self.root = Path(config.data.dir).expanduser()
        params, model = None, None
        if workdir is not None:
            _require_mae(config, workdir)
            paths = _pretrained(workdir)
            if not self.root.is_dir():  # phantoms would be written there
                raise DataError(f"There is no folder {self.root} (--config.data.dir).")
        self.prepared = prepare(
            config.data.name,
            self.root,
            Path(config.data.cache_dir).expanduser() / "datasets",
            on_error=config.data.on_error,
            near_duplicate_threshold=config.data.near_duplicate_threshold,
            classes=config.data.classes,
            group_pattern=config.data.group_pattern,
            intensity_range=config.data.intensity_range,
        )
        if workdir is not None:
            model = pretrain.create_autoencoder(self.config, len(self.prepared.classes))
            params = pretrain.load_autoencoder(paths.autoencoder(0), model)
        self.part_of = {} if workdir is None else _parts(paths.splits(0), self.prepared)
        self._view = pipeline.evaluation_view(
            self.prepared,
            color=config.data.color,
            resize=config.data.resize,
            image_size=config.data.image_size,
            resized=config.evaluation.resize,
        )
        self._key = rng.stage_key(config.seed, "entropy_maps")
        self._dataset = datasets.get(config.data.name)
        self._corrupt = self._program(None, None)
        self._reconstruct = self._program(params, model)

    def _program(self, params: Any, model: Any) -> Callable:
        program = platform.jit(
            lambda params, pixels, key: pretrain.reconstruct(
                params, pixels, key, model=model, config=self.config
            )
        )
        return lambda pixels, key: program(params, pixels, key)

    def panels(self, index: int, *, reconstruct: bool = True) -> Panels:
        """Of the image at `index`: its noise is the same whichever others are drawn."""
        pixels = self._view.load(np.array([index])).pixels[0]
        program = self._reconstruct if reconstruct else self._corrupt
        return compute_panels(program, pixels, jax.random.fold_in(self._key, index))

    def lesion(self, index: int) -> np.ndarray | None:
        """bool [H, W], see `masks.lesion_mask`, which also says what is raised."""
        data = self.config.data
        height, width = self.prepared.sizes[index].tolist()
        return masks.lesion_mask(
            self.root,
            self.prepared.files[index],
            self._dataset,
            image_shape=(height, width),
            resize=data.resize,
            image_size=data.image_size,
            resized=self.config.evaluation.resize,
        )

    def caption(self, index: int) -> str:
        """The file's name and the image's class and part."""
        file = self.prepared.files[index]
        part = self.part_of.get(file)
        label = self.prepared.classes[self.prepared.labels[index]]
        return f"{Path(file).name}\n{label}" + (f", {part}" if part else "")


def config_of(workdir: Path | None, config: ConfigDict | None) -> ConfigDict:
    """The config as given, which must be the workdir's where both are; else the workdir's.

    Raises:
        ConfigError: neither is given, or they differ.
        RunError: the workdir holds no run.
        DamagedFileError: its config.json cannot be read.
    """
    if workdir is None and config is None:
        raise configs.ConfigError("Give --workdir=W of a run, or --config=configs/busi.py.")
    if workdir is not None and not (workdir / "config.json").exists():
        raise RunError(f"--workdir={workdir} holds no run: there is no config.json.")
    if workdir is not None and config is not None:
        require_same_run(workdir, config)
    if config is not None:
        return config
    assert workdir is not None
    return configs.load(workdir / "config.json")


def _require_mae(config: ConfigDict, workdir: Path) -> None:
    of_run = branches.of(config)
    if not any(branch.is_mae for branch in of_run):
        raise configs.ConfigError(
            f"--workdir={workdir} is of a run without the branch 'mae' (its branches: "
            f"{', '.join(repr(branch.name) for branch in of_run)}), which pre-trains nothing. Give "
            "--config without --workdir for the maps that need no network."
        )


def _pretrained(workdir: Path) -> Paths:
    """Where the first split and its pre-training are."""
    for paths in (Paths(workdir, folds=False), Paths(workdir, folds=True)):
        if paths.autoencoder(0).exists():
            return paths
    raise RunError(
        f"--workdir={workdir} has no finished pre-training (pretrain/autoencoder.safetensors). "
        "Run main.py with --stage=pretrain on it first, or give --config without --workdir for the "
        "maps that need no network."
    )


def _parts(path: Path, prepared: Prepared) -> dict[str, str]:
    if not path.exists():
        raise DamagedFileError(path, "it is missing", RESTORE)
    rows = splits.read(path)
    now = dict(zip(prepared.files, prepared.sha256, strict=True))
    for row in rows:
        if now.get(row["file"], row["sha256"]) != row["sha256"]:
            raise DataError(f"{row['file']} is not the file that the run was trained on.")
    return {row["file"]: row["split"] for row in rows}


def choose(prepared: Prepared, count: int, among: np.ndarray) -> list[int]:
    """Indices of `count` images out of `among`: as many of each class, evenly spaced by name."""
    by_class = [among[prepared.labels[among] == k] for k in range(len(prepared.classes))]
    share = -(-count // max(1, sum(len(members) > 0 for members in by_class)))
    picked = [
        members[np.linspace(0, len(members) - 1, min(share, len(members))).round().astype(int)]
        for members in by_class
    ]
    rounds = [members[k] for k in range(share) for members in picked if k < len(members)]
    return sorted(int(index) for index in rounds[:count])


def find(prepared: Prepared, names: Sequence[str]) -> list[int]:
    """Indices of files, by their path in the data folder or the end of it.

    Raises:
        DataError: there is none, or there are several.
    """
    indices = []
    for name in names:
        matching = [
            i for i, file in enumerate(prepared.files) if file == name or file.endswith(f"/{name}")
        ]
        if len(matching) > 1:
            several = ", ".join(prepared.files[i] for i in matching[:5])
            raise DataError(f"--file={name} is {len(matching)} images: {several}. Give the path.")
        if not matching:
            last = {Path(file).name: file for file in prepared.files}
            nearest = difflib.get_close_matches(Path(name).name, last, n=1, cutoff=0.0)
            raise DataError(
                f"--file={name}: the data set has no such image. Did you mean {last[nearest[0]]!r}?"
            )
        indices.append(matching[0])
    return indices


def draw(source: Source, indices: Sequence[int], folder: Path) -> list[Path]:
    """Writes sheet.png and a figure of each image, all of one scale; returns the files."""
    panels = [source.panels(index) for index in indices]
    lesions = []
    for index in indices:
        try:
            lesions.append(source.lesion(index))
        except DataError as error:
            logger.warning("No outline: %s", error)
            lesions.append(None)
    scales, captions = common_scales(panels), [source.caption(index) for index in indices]
    note = describe(source.config)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "sheet.png"]
    sheet = draw_sheet(panels, captions, scales=scales, lesions=lesions, note=note)
    sheet.savefig(files[0])
    for index, panel, caption, lesion in zip(indices, panels, captions, lesions, strict=True):
        name = Path(source.prepared.files[index].replace("/", "_"))
        path = folder / picture_name(name.stem)
        if path in files:  # 1.jpg beside 1.png
            path = folder / picture_name(f"{name.name}.png")
        files.append(path)
        one = draw_sheet([panel], [caption], scales=scales, lesions=[lesion], note=note)
        one.savefig(files[-1])
    return files


def describe(config: FrozenConfigDict) -> str:
    """The corruption in words."""
    corruption = config.corruption
    if corruption.kind in ("entropy_noise", "uniform_noise"):
        how = f"scale {corruption.scale:g}, threshold {corruption.threshold:g}"
    else:
        how = f"mask ratio {corruption.mask_ratio:g}"
    return f"{corruption.kind}, {how}. Training sees random crops, corrupted in the same way."


def measure(source: Source) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Where the noise falls over all images, and the rows of those with a lesion in view."""
    prepared = source.prepared
    images: dict[str, list[dict[str, float]]] = {name: [] for name in prepared.classes}
    rows: list[dict[str, Any]] = []
    without, left_out = 0, []
    for index, file in enumerate(prepared.files):
        panel = source.panels(index, reconstruct=False)
        label = prepared.classes[prepared.labels[index]]
        images[label].append(measure_image(panel))
        try:
            lesion = source.lesion(index)
        except DataError as error:
            left_out.append(f"{file}: {error}")
            continue
        if lesion is not None and lesion.any():
            known = {"file": file, "label": label, "group": int(prepared.groups[index])}
            rows.append(known | measure_lesion(panel, lesion))
        else:
            without += 1
    if left_out:
        logger.warning("Left out of the lesions (%d): %s", len(left_out), "; ".join(left_out[:5]))
    found: dict[str, Any] = {
        "dataset": prepared.title,
        "view": f"evaluation view, {source.config.data.image_size} pixels",
        "entropy": source.config.entropy.to_dict(),
        "corruption": source.config.corruption.to_dict(),
        "seed": source.config.seed,
        "images": {
            "all": summarize_images([row for of_class in images.values() for row in of_class]),
            "by_class": {name: summarize_images(images[name]) for name in prepared.classes},
        },
    }
    if rows:
        classes = {name: [row for row in rows if row["label"] == name] for name in images}
        found["lesions"] = {
            "ring_pixels": source.config.corruption.patch_size,
            "images_without_lesion": without,
            "images_left_out": left_out,
            "all": summarize_lesions(rows),
            "by_class": {
                name: summarize_lesions(of_class) for name, of_class in classes.items() if of_class
            },
            "rows": rows,
        }
    return found, rows


def show(found: Mapping[str, Any]) -> None:
    """Prints what `measure` found."""
    terminal = rich.console.Console(highlight=False, emoji=False)
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
    table.add_column("All images", overflow="fold")
    for title in ("n", "H (nats)", "noise variance", "masked"):
        table.add_column(title, justify="right")
    for name, row in _all_and_classes(found["images"]):
        cells = (_cell(row[key]) for key in ("entropy", "noise_variance", "masked_share"))
        table.add_row(rich.text.Text(name), str(row["images"]), *cells)
    terminal.print(table)
    lesions = found.get("lesions")
    if lesions is None:
        terminal.print("No lesion masks: nothing is said of lesions.")
        return
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
    table.add_column("Lesions", overflow="fold")
    for title in ("n", "H inside", "H ring", "H outside", "noise/area", "p"):
        table.add_column(title, justify="right")
    for name, row in _all_and_classes(lesions):
        ratio = row["noise_enrichment"]
        ratio = row["mask_enrichment"] if ratio["mean"] is None else ratio
        p = "" if ratio["p"] is None else f"{ratio['p']:.2g}"
        cells = (_cell(row["entropy"][region]) for region in ("inside", "ring", "outside"))
        table.add_row(rich.text.Text(name), str(row["images"]), *cells, _cell(ratio), p)
    terminal.print(table)
    terminal.print(
        "noise/area: the lesion's share of the noise variance (of masked patches for the mask "
        "kinds) over its share of the area; below 1, lesions get less. p: Wilcoxon over groups of "
        "images that belong together.",
        markup=False,
    )


def _all_and_classes(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = [("all", found["all"]), *found["by_class"].items()]
    return [(name, row) for name, row in rows if row["images"]]


def _cell(value: Mapping[str, float | None]) -> str:
    mean, sd = value["mean"], value["sd"]
    return "" if mean is None else f"{mean:.2f}" + ("" if sd is None else f" ± {sd:.2f}")


def run(
    config: ConfigDict,
    workdir: Path | None,
    out: Path,
    *,
    files: Sequence[str] = (),
    count: int = 6,
    statistics: bool = True,
) -> None:
    """Draws some images and measures all of them.

    Args:
        config: of the data and the corruption.
        workdir: of a run whose pre-training is finished, if any.
        out: folder for the figures and noise.json.
        files: the images to draw; if there are none, some of all classes.
        count: how many these are.
        statistics: whether all images are measured, too.
    """
    source = Source(config, workdir)
    indices = find(source.prepared, files)
    if not indices:
        among = np.arange(len(source.prepared.files))
        if workdir is not None:  # pre-training has not seen them
            held = [source.part_of.get(file) == "validation" for file in source.prepared.files]
            among = np.flatnonzero(held)
        indices = choose(source.prepared, count, among)
    drawn = draw(source, indices, out)
    logger.info("Written to %s: sheet.png and %d figures of single images", out, len(drawn) - 1)
    if not statistics:
        return
    found, rows = measure(source)
    write_json(out / "noise.json", found)
    (out / "lesions.png").unlink(missing_ok=True)
    if rows:
        title = (
            f"{source.prepared.title}: {len(rows)} images with a lesion in the evaluation view, "
        )
        title += describe(source.config).split(". ")[0]
        draw_lesions(rows, title).savefig(out / "lesions.png")
    show(found)
    logger.info("Written to %s: noise.json%s", out, ", lesions.png" if rows else "")


if __name__ == "__main__":
    runpy.run_module("egmae_jax.commands.entropy_maps", run_name="__main__")
