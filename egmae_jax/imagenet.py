"""Where the ImageNet branch starts: timm's weights, the same file throughout a run."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from egmae_jax import config as configs
from egmae_jax import models
from egmae_jax.files import RESTORE, DamagedFileError, read_json, write_json
from egmae_jax.interop import timm

PyTree = Any

logger = logging.getLogger(__name__)


class ImagenetWeights:
    """The weights that `imagenet.weights` names; a run records the file's SHA-256.

    Attributes:
        source: a hub id, a file, or 'none' for random weights.
        params: what the branch starts from, once `load` has read it; None for random weights.
    """

    def __init__(self, weights: str, model_name: str, record: Path):
        self.source = models.default_weights(model_name) if weights == "default" else weights
        self.params: PyTree | None = None
        self._model_name = model_name
        self._record = record
        self._sha256: str | None = None
        if self.source == "none":
            logger.warning(
                "imagenet.weights=none: the ImageNet branch starts from RANDOM weights; its "
                "results and the ensemble's are not the method's."
            )

    def load(self, *, begun: bool) -> None:
        """Finds and reads the weights; writes nothing.

        Args:
            begun: a branch has begun with weights, so these must be the same.

        Raises:
            FileNotFoundError: they are nowhere; the message says how to get them.
            CheckpointError: they are not this model's.
            ConfigError: they are not the file the run began with.
        """
        if self.source == "none":
            return
        try:
            path = timm.locate(self.source)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} The ImageNet branch needs them (imagenet.weights). To start it from "
                "random weights instead, and have every result say so: "
                "--config.imagenet.weights=none."
            ) from None
        self._sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if begun and self.recorded_sha256() != self._sha256:
            raise configs.ConfigError(
                f"imagenet.weights: {path} is not the file this run began with, whose SHA-256 is "
                f"in {self._record}. Give that file, or start in another --workdir."
            )
        self.params = timm.load(path, models.imagenet_model(self._model_name))

    def record(self) -> None:
        """Writes down which file `load` has read, if any."""
        if self._sha256 is not None:
            write_json(self._record, {"source": self.source, "sha256": self._sha256})

    def recorded_sha256(self) -> str | None:
        """Of the file the run began with; None where it began with random weights."""
        if self.source == "none":
            return None
        if not self._record.exists():
            raise DamagedFileError(self._record, "it is missing", RESTORE)
        return read_json(self._record, RESTORE)["sha256"]
