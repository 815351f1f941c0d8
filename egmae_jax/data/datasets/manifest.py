"""Any images listed in a table: manifest.csv with the columns path, label, [group], [split]."""

from pathlib import Path, PurePosixPath

from egmae_jax.data.datasets.base import DataError, Dataset, ImageFile, read_table

_FILE = "manifest.csv"
_SPLITS = ("train", "validation", "test")


def _list_images(root: Path) -> list[ImageFile]:
    table = root / _FILE
    if not table.is_file():
        raise DataError(f"{root} has no {_FILE}.")
    images: dict[str, ImageFile] = {}
    for number, row in read_table(table, ("path", "label")):
        where = f"{table}, line {number}"
        path = PurePosixPath(row["path"])
        split = row.get("split") or None
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise DataError(f"{where}: the path {row['path']!r} must lead below {root}.")
        if not row["label"]:
            raise DataError(f"{where}: the label is empty.")
        if split is not None and split not in _SPLITS:
            raise DataError(f"{where}: the split is {split!r}; it can be {', '.join(_SPLITS)}.")
        if str(path) in images:
            raise DataError(f"{where}: {path} is listed before.")
        try:
            is_file = (root / path).is_file()
        except OSError as error:  # a name that is too long
            raise DataError(f"{where}: {error.strerror}: {str(path)[:80]!r}.") from None
        if not is_file:
            raise DataError(f"{where}: there is no file {root / path}.")
        images[str(path)] = ImageFile(str(path), row["label"], row.get("group") or None, split)
    if len({image.label for image in images.values()}) < 2:
        raise DataError(f"{table} must list images of two or more classes.")
    some = [image.split is not None for image in images.values()]
    if any(some) and not all(some):
        raise DataError(f"{table}: {some.count(False)} of {len(some)} lines have no split.")
    return sorted(images.values())


DATASET = Dataset(
    name="manifest",
    title="images listed in a manifest",
    citation="",
    obtain=(
        "Give the folder that holds manifest.csv, with the columns path (below that folder), label "
        "and, if you like, group and split, as --config.data.dir=<folder>."
    ),
    list_images=_list_images,
)
