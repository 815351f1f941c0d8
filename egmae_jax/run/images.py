"""The images of a run, as its config describes them: files, descriptions and evaluation view."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.augmentations import tta
from egmae_jax.data.datasets import unlabelled
from egmae_jax.data.listing import Listing, list_files
from egmae_jax.data.prepare import Prepared, prepare
from egmae_jax.data.samples import IntensityRange


def list_images(config: ConfigDict | FrozenConfigDict) -> Listing:
    """Lists the files of the data set without reading them; see `listing.list_files`."""
    data = config.data
    return list_files(
        data.name,
        Path(data.dir).expanduser(),
        classes=data.classes,
        group_pattern=data.group_pattern,
        field="--images" if data.name == unlabelled.NAME else "data.dir",  # of `egmae pretrain`
    )


def prepare_images(
    config: ConfigDict | FrozenConfigDict, listing: Listing, *, on_error: str | None = None
) -> Prepared:
    """Reads all images once, for their hashes, near-duplicates and range; see `prepare.prepare`.

    Args:
        config: config of the run.
        listing: result of `list_images`.
        on_error: replaces data.on_error unless it is None.
    """
    data = config.data
    prepared = prepare(
        listing,
        Path(data.cache_dir).expanduser() / "datasets",
        on_error=on_error or data.on_error,
        near_duplicate_threshold=data.near_duplicate_threshold,
        intensity_range=data.intensity_range,
    )
    return dataclasses.replace(prepared, title=data.title or prepared.title)


def tta_view_settings(config: ConfigDict | FrozenConfigDict) -> dict[str, Any]:
    """Returns `view_settings` for prediction, large enough for the views of evaluation.tta."""
    size = tta.input_size(config.evaluation.tta, config.data.image_size, config.evaluation.resize)
    return view_settings(config) | {"image_size": size}


def tta_views(config: ConfigDict | FrozenConfigDict) -> Callable[[Any], list[Any]] | None:
    """Returns the function that makes the views of evaluation.tta; None if there is only one."""
    kinds = tuple(config.evaluation.tta)
    if not kinds:
        return None
    return functools.partial(tta.views, kinds=kinds, size=config.data.image_size)


def list_unlabelled(config: ConfigDict | FrozenConfigDict) -> list[Listing]:
    """Lists the files in each folder of pretrain.unlabelled; see `listing.list_files`."""
    return [
        list_files(
            unlabelled.NAME,
            Path(folder).expanduser(),
            group_pattern=config.data.group_pattern,
            field="pretrain.unlabelled",
        )
        for folder in config.pretrain.unlabelled
    ]


def prepare_unlabelled(
    config: ConfigDict | FrozenConfigDict, listings: Sequence[Listing], intensity: IntensityRange
) -> list[Prepared]:
    """Reads the images of `list_unlabelled` once, without looking for near-duplicates.

    Args:
        config: config of the run.
        listings: result of `list_unlabelled`.
        intensity: stored values of black and white in the labelled images.
    """
    data = config.data
    return [
        prepare(
            listing,
            Path(data.cache_dir).expanduser() / "datasets",
            on_error=data.on_error,
            near_duplicate_threshold=None,
            intensity_range=intensity if intensity.rule == "dataset" else intensity.rule,
        )
        for listing in listings
    ]


def view_settings(config: ConfigDict | FrozenConfigDict) -> dict[str, Any]:
    """Returns the arguments resize, image_size and resized of the evaluation view."""
    data = config.data
    return {
        "resize": data.resize,
        "image_size": data.image_size,
        "resized": config.evaluation.resize,
    }
