"""ImageNet weights, from which branches start that are not pre-trained here."""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from egmae_jax import models
from egmae_jax.core.files import RESTORE, read_json, require_readable, write_json
from egmae_jax.models import timm
from egmae_jax.models import weights as model_weights
from egmae_jax.run import config as configs
from egmae_jax.run.branches import Branch

PyTree = Any

logger = logging.getLogger(__name__)


class ImagenetWeights:
    """Finds and reads the weights that `imagenet.weights` names, and records their SHA-256.

    Attributes:
        sources: a hub id, a file, or 'none' for random weights, by branch.
        variables: variables that each branch starts from, once `load` has read them; branches that
            start from random weights have none.
    """

    def __init__(self, weights: str, branches: Iterable[Branch], record: Path):
        self._branches = {branch.name: branch for branch in branches if not branch.is_mae}
        backbones = {models.imagenet_model(b.model_name) for b in self._branches.values()}
        one_file = weights not in ("default", "none") and not Path(weights).expanduser().is_dir()
        if one_file and len(backbones) > 1:
            raise configs.ConfigError(
                f"imagenet.weights is {weights}, but the branches need weights of "
                f"{', '.join(sorted(backbones))}: give a folder that holds a file of each, named "
                "<model>.safetensors or <model>.npz."
            )
        self.sources = {
            name: _source(weights, branch.model_name) for name, branch in self._branches.items()
        }
        self.variables: dict[str, PyTree] = {}
        self._record = record
        self._sha256: dict[str, str] = {}
        if self._branches and weights == "none":
            logger.warning(
                "imagenet.weights=none: RANDOM weights to start from (%s); such results and the "
                "ensemble's are not the method's.",
                ", ".join(self._branches),
            )

    def load(self, names: Iterable[str], begun: Iterable[str]) -> None:
        """Finds and reads the weights of some branches; writes nothing.

        Args:
            names: names of branches; those without weights of their own are skipped.
            begun: names of branches that have begun with weights, which must be the same still.

        Raises:
            MissingWeightsError: they are nowhere; the message says how to get them.
            CheckpointError: they are not this model's.
            ConfigError: they are not the file the run began with.
        """
        begun = set(begun)
        for name in names:
            source = self.sources.get(name, "none")
            if source == "none":
                continue
            try:
                path = model_weights.locate(source)
            except model_weights.MissingWeightsError as error:
                raise model_weights.MissingWeightsError(
                    f"{error} The branch {name!r} needs them; --config.imagenet.weights=none "
                    "starts it from random weights, and every result says so."
                ) from None
            require_readable(path)
            self._sha256[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            if name in begun and self.recorded().get(name) != self._sha256[name]:
                raise configs.ConfigError(
                    f"imagenet.weights: {path} is not the file this run began with, whose SHA-256 "
                    f"is in {self._record}. Give that file, or start in another --workdir."
                )
            model_name = models.imagenet_model(self._branches[name].model_name)
            self.variables[name] = timm.load(path, model_name, classifier=False)

    def record(self) -> None:
        """Records the SHA-256 of the files that `load` has read, if any."""
        if self._sha256:
            known = self.recorded() if self._record.exists() else {}
            write_json(self._record, known | self._sha256)

    def recorded(self) -> dict[str, str]:
        """SHA-256 of the file that each branch began with; of none where all began at random.

        Raises:
            DamagedFileError: the record is missing or damaged.
        """
        if all(source == "none" for source in self.sources.values()):
            return {}
        return read_json(self._record, RESTORE)


def _source(weights: str, model_name: str) -> str:
    """The hub id or file that `imagenet.weights` names for one model, or 'none'.

    In a folder it is the file named after the model, else `model.safetensors`, as on the hub;
    without either it is the default.
    """
    backbone = models.imagenet_model(model_name)
    if weights == "default":
        return models.default_weights(backbone)
    folder = Path(weights).expanduser()
    files = [folder / f"{backbone}{suffix}" for suffix in (".safetensors", ".npz")]
    files += [folder / "model.safetensors"]  # as the hub has it
    missing = models.default_weights(backbone) if folder.is_dir() else weights
    return next((str(file) for file in files if file.is_file()), missing)
