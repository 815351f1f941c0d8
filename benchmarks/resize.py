"""Enlarges images to the published size of a data set."""

from pathlib import Path

import numpy as np
import PIL.Image

from egmae_jax.data import images
from egmae_jax.data.prepare import Prepared
from egmae_jax.data.threads import read_ahead


def write_resized(data: Prepared, folder: Path, count: int, size: str) -> None:
    """Writes resized images of a data set, with one folder for each class.

    JPEG stays JPEG, of quality 95; all else becomes PNG. Modes L and RGB stay.

    Args:
        data: the data set.
        folder: to write to.
        count: how many, drawn at random.
        size: 'WIDTHxHEIGHT', with sides swapped for upright images.
    """
    long, short = sorted((int(side) for side in size.split("x")), reverse=True)
    chosen = np.random.default_rng(0).permutation(len(data.files))[:count].tolist()
    for name in data.classes:
        (folder / name).mkdir(parents=True)

    def write(k: int) -> int:
        index = chosen[k]
        image = images.from_array(data.records.pixels(index))
        wide = image.width >= image.height
        image = image.resize((long, short) if wide else (short, long), PIL.Image.Resampling.BICUBIC)
        image = image.convert("L") if data.modes[index] == "L" else image
        path = folder / data.classes[data.labels[index]] / str(index)
        if data.files[index].lower().endswith((".jpg", ".jpeg")):
            image.save(path.with_suffix(".jpg"), quality=95)
        else:
            image.save(path.with_suffix(".png"))
        return k

    for _ in read_ahead(write, 0, len(chosen)):
        pass
