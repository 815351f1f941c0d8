"""Decodes, resizes and crops new images as the evaluation of a finished run does."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from egmae_jax.data import images, samples
from egmae_jax.data.images import UnreadableImageError
from egmae_jax.run.saved_run import SavedRun

# Path of an image file, its bytes, a Pillow image, or an array uint8 [H, W, 3] or [H, W, 1].
Source = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray
logger = logging.getLogger(__name__)


class Views:
    """Function of an image that returns its evaluation view.

    Args:
        run: the run, whose settings apply.
        settings: size and shape of the view, `run.images.view_settings` or, to predict,
            `tta_view_settings`.
    """

    def __init__(self, run: SavedRun, settings: Mapping[str, Any]):
        self._config, self._intensity, self._settings = run.config, run.intensity, settings
        self._warned_of_range = False

    def __call__(self, source: Source) -> np.ndarray | str:
        """Returns pixels uint8 [S, S, 3 or 1], or the reason why the image cannot be read."""
        data, intensity = self._config.data, self._intensity
        try:
            if isinstance(source, (str, os.PathLike)):
                try:
                    source = Path(source).read_bytes()
                except OSError as error:
                    return error.strerror or str(error)
            if isinstance(source, bytes):
                decoded = images.examine(source, intensity)
                image = decoded.image if data.color == "rgb" else decoded.image.convert("L")
                if decoded.stored is not None and samples.lies_beyond(intensity, *decoded.stored):
                    self._warn_of_range(*decoded.stored[1:])
            elif isinstance(source, PIL.Image.Image):
                image = images.convert(source, data.color, intensity)
            else:
                image = images.convert(images.from_array(source), data.color)
        except UnreadableImageError as error:
            return str(error)
        return images.to_array(images.evaluation_view(image, **self._settings))

    def _warn_of_range(self, low: float, high: float) -> None:
        if not self._warned_of_range:
            logger.warning(
                "An image has values of %g to %g, outside the range of the training data set (%s; "
                "data.intensity_range='dataset'). Values outside become black or white. Further "
                "images with such values are not reported",
                low,
                high,
                samples.listed(self._intensity),
            )
        self._warned_of_range = True
