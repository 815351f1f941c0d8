"""ImageNet weights, from which all branches but 'mae' start (paper section 3.1)."""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from egmae_jax import models
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import RESTORE, read_json, require_readable, write_json
from egmae_jax.models import timm
from egmae_jax.models import weights as model_weights
from egmae_jax.models.model import IMAGENET
from egmae_jax.run.branches import Branch
from egmae_jax.run.workdir import other_file_error

PyTree = Any

logger = logging.getLogger(__name__)


class ImagenetWeights:
    """Finds and reads the weights that `imagenet.weights` names, and records their SHA-256.

    Attributes:
        sources: Hugging Face hub id, file path, or 'none' for random weights, by branch.
        variables: ImageNet variables by branch, after `load`; branches with random weights have no
            entry.
    """

    def __init__(self, weights: str, branches: Iterable[Branch], record: Path):
        self._branches = {branch.name: branch for branch in branches if not branch.is_mae}
        backbones = {models.imagenet_model(b.model_name) for b in self._branches.values()}
        one_file = weights not in ("default", "none") and not Path(weights).expanduser().is_dir()
        if one_file and len(backbones) > 1:
            raise ConfigError(
                f"imagenet.weights={weights} is one file, but the branches need weights of "
                f"{', '.join(sorted(backbones))}. Give a folder with a file for each, named "
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
                "imagenet.weights=none: %s will start from RANDOM weights, so the results, also of "
                "the ensemble, are not the method's.",
                ", ".join(self._branches),
            )

    def load(self, names: Iterable[str], begun: Iterable[str]) -> None:
        """Locates and reads the weights of some branches, without writing a file.

        Args:
            names: names of the branches; branches without ImageNet weights are skipped.
            begun: names of the branches whose fine-tuning has begun, for which the file must be the
                recorded one.

        Raises:
            MissingWeightsError: the weights cannot be found; the message says how to get them.
            CheckpointError: the weights do not fit the model.
            ConfigError: the weights are not those that the run began with.
        """
        begun = set(begun)
        for name in names:
            source = self.sources.get(name, "none")
            if source == "none":
                continue
            path = _locate(source, name)
            _require_normalization(path, models.imagenet_model(self._branches[name].model_name))
            self._sha256[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            if name in begun and self.recorded().get(name) != self._sha256[name]:
                raise other_file_error("imagenet.weights", path, self._record)
            model_name = models.imagenet_model(self._branches[name].model_name)
            self.variables[name] = timm.load(path, model_name, classifier=False)

    def record(self) -> None:
        """Records the SHA-256 of each file that `load` has read."""
        if self._sha256:
            known = self.recorded() if self._record.exists() else {}
            write_json(self._record, known | self._sha256)

    def recorded(self) -> dict[str, str]:
        """Returns the recorded SHA-256 by branch, or {} if all branches start from random weights.

        Raises:
            DamagedFileError: imagenet_weights.json is missing or damaged.
        """
        if all(source == "none" for source in self.sources.values()):
            return {}
        return read_json(self._record, RESTORE)


def require_available(weights: str, branches: Iterable[Branch]) -> None:
    """Checks that the weights of all branches can be found, downloading them if necessary.

    Args:
        weights: value of the config field `imagenet.weights`.
        branches: branches of a run; those that start otherwise are skipped.

    Raises:
        MissingWeightsError: the weights of a branch cannot be found.
    """
    for branch in branches:
        if not branch.is_mae and (source := _source(weights, branch.model_name)) != "none":
            _locate(source, branch.name)


def _locate(source: str, branch: str) -> Path:
    try:
        path = model_weights.locate(source)
    except model_weights.MissingWeightsError as error:
        raise model_weights.MissingWeightsError(
            f"{error} The branch {branch!r} needs them. --config.imagenet.weights=none "
            "starts it from random weights, which all results will mention."
        ) from None
    require_readable(path)
    return path


def _require_normalization(path: Path, model_name: str) -> None:
    """Checks that a file's config.json, if any, states the normalisation that the network gets.

    Raises:
        ConfigError: it states another one.
    """
    mean, std = expected = models.normalization(model_name)
    if expected != IMAGENET:
        logger.info(
            "%s gets images with mean %s and standard deviation %s, as timm's default weights of "
            "it expect",
            *(model_name, mean, std),
        )
    stated = model_weights.expected_normalization(path, model_name)
    if stated is not None and stated != expected:
        raise ConfigError(
            f"imagenet.weights: {path.parent / 'config.json'} states that the weights expect "
            f"images with mean {stated.mean} and standard deviation {stated.std}, but {model_name} "
            f"gets mean {mean} and standard deviation {std}. Give other weights of {model_name}, "
            f"such as {models.default_weights(model_name)}."
        )


def _source(weights: str, model_name: str) -> str:
    """Returns the hub id or file of `imagenet.weights` for one model, or 'none'.

    In a folder this is the file named after the model, else `model.safetensors`, else the model's
    default weights.
    """
    backbone = models.imagenet_model(model_name)
    default = models.default_weights(backbone)
    if weights == "default":
        if not default:
            raise ConfigError(
                f"imagenet.weights is 'default', but there are no ImageNet weights of {backbone}: "
                "give a file, or 'none' for random weights (--config.imagenet.weights=none)."
            )
        return default
    folder = Path(weights).expanduser()
    files = [folder / f"{backbone}{suffix}" for suffix in (".safetensors", ".npz")]
    files += [folder / "model.safetensors"]  # the name in repositories of the hub
    if file := next((file for file in files if file.is_file()), None):
        return str(file)
    if not folder.is_dir():
        return weights
    if not default:
        raise ConfigError(
            f"imagenet.weights={weights} has no {backbone}.safetensors or {backbone}.npz, and "
            f"there are no other ImageNet weights of {backbone}."
        )
    return default
