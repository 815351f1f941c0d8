"""Weights that pre-training starts from (pretrain.weights): an earlier pre-training, or timm's."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import FrozenConfigDict

from egmae_jax import models
from egmae_jax.core.errors import ConfigError, shorten_list
from egmae_jax.core.files import read_sealed
from egmae_jax.data.datasets import DataError
from egmae_jax.data.listing import Listing
from egmae_jax.models import timm, transfer
from egmae_jax.models import weights as model_weights
from egmae_jax.models.init import abstract_variables
from egmae_jax.models.timm_problems import format_problems
from egmae_jax.models.transfer import MisfitError
from egmae_jax.models.weights import CheckpointError, MissingWeightsError
from egmae_jax.run import seen
from egmae_jax.run.config import load_config
from egmae_jax.run.rounds import RoundData
from egmae_jax.run.workdir import Paths, other_file_error
from egmae_jax.training import pretrain

PyTree = Any
logger = logging.getLogger(__name__)


class Start(NamedTuple):
    """Weights of one pre-training's start."""

    path: Path
    sha256: str
    params: dict[str, np.ndarray]  # by path, such as 'encoder/stem/conv/kernel'


class PretrainedWeights:
    """Finds and reads the weights that `pretrain.weights` names.

    Args:
        config: config of the run, with a `pretrain.weights` that is not empty.

    Attributes:
        source: `pretrain.weights`.
        records: content of started_from.json by split, after `check`: source, SHA-256 of the file,
            and the number of held-out images by part that the earlier pre-training was on.
    """

    def __init__(self, config: FrozenConfigDict):
        self.source: str = config.pretrain.weights
        self._config = config
        self._starts: dict[int, Start] = {}
        self._run = seen.run_folder(self.source)
        self.records: dict[int, dict[str, Any]] = {}

    def load(self, pretrainings: Sequence[int]) -> None:
        """Locates and reads the weights of some pre-trainings, by index of the split.

        Raises:
            MissingWeightsError: the weights cannot be found; the message says how to get them.
            CheckpointError: the weights do not fit the model.
            ConfigError: the source is of another network.
        """
        expected = abstract_variables(pretrain.create_autoencoder(self._config))["params"]
        for split in pretrainings:
            path, name = self._locate(split), self._config.model.name
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self._starts[split] = Start(path, digest, _read(path, name))
            try:
                transfer.start_pretraining(expected, self._starts[split].params)
            except MisfitError as error:
                raise CheckpointError(
                    f"pretrain.weights: {path} does not fit model.name={name}; "
                    f"{len(error.problems)} parameters differ:\n  {format_problems(error.problems)}"
                ) from None

    def check(self, listing: Listing, data: RoundData) -> None:
        """Finds the held-out images that the earlier pre-trainings were on, for `records`.

        What a file or a checkpoint of timm was trained on is unknown, so its "seen" is None.

        Args:
            listing: listing of the run's labelled data set.
            data: images of the run.

        Raises:
            DataError: there are such images, and `pretrain.drop_leaks` is True.
        """
        for split, start in self._starts.items():
            record: dict[str, Any] = {"source": self.source, "file_sha256": start.sha256}
            record["seen"] = None
            if self._run is not None:
                known = seen.read(self._run, split)
                files = seen.held_out(known, self._config, listing, data, split)
                self._require_none(files)
                if known.is_complete or any(files.values()):
                    record["seen"] = {part: len(listed) for part, listed in files.items()}
            self.records[split] = record

    def _require_none(self, held_out: Mapping[str, Sequence[str]]) -> None:
        files = [file for listed in held_out.values() for file in listed]
        if files and self._config.pretrain.drop_leaks:
            raise DataError(
                f"pretrain.weights={self.source}: this pre-training was on {len(files)} images "
                f"that are in {' and '.join(x for x in held_out if held_out[x])} now, or on images "
                f"of their groups: {shorten_list(files, 5)}. Pre-train without them "
                "(pretrain.unlabelled leaves them out), or set --config.pretrain.drop_leaks=False; "
                "results.json then says that pre-training saw them."
            )

    def start(self, split: int, fresh: PyTree) -> tuple[PyTree, bool]:
        """Returns the parameters at the start, and whether the decoder is a trained one.

        Args:
            split: index of the split, which `load` has read.
            fresh: initial parameters of the autoencoder.
        """
        weights = self._starts[split]
        params, has_decoder = transfer.start_pretraining(fresh, weights.params)
        logger.info(
            "Pre-training starts from the %s of %s",
            "encoder and decoder" if has_decoder else "encoder",
            weights.path,
        )
        return params, has_decoder

    def require_same(self, record: Path, split: int) -> None:
        """Checks that the weights are those that a pre-training began with, by started_from.json.

        Raises:
            ConfigError: they are others.
        """
        if read_sealed(record)["file_sha256"] != self._starts[split].sha256:
            raise other_file_error("pretrain.weights", self._starts[split].path, record)

    def _locate(self, split: int) -> Path:
        source, model_name = self.source, self._config.model.name
        if self._run is not None:
            config = load_config(self._run / "config.json")
            paths, name = Paths.of(self._run, config), config.model.name
            if name != model_name:
                raise ConfigError(
                    f"pretrain.weights={source} is of {name}, but model.name is {model_name}."
                )
            path = paths.autoencoder(paths.split_index(split))
            if not path.is_file():
                raise MissingWeightsError(
                    f"pretrain.weights={self.source} is the folder of a run, but there is no "
                    f"{path}: its pre-training is not finished."
                )
            return path
        name, _, tag = source.rpartition("/")[2].partition(".")
        if tag and name in models.names() and not Path(source).expanduser().exists():
            if name != model_name:
                raise ConfigError(
                    f"pretrain.weights={source} is of {name}, but model.name is {model_name}."
                )
            source = source if "/" in source else f"timm/{source}"
        try:
            return model_weights.locate(source)
        except MissingWeightsError as error:
            raise MissingWeightsError(f"pretrain.weights: {error}") from None


def _read(path: Path, model_name: str) -> dict[str, np.ndarray]:
    """Reads an autoencoder of this package, or timm's encoder, as parameters by path."""
    tensors = model_weights.read(path)
    if any(name.startswith("encoder/") for name in tensors):
        params = tensors
    else:
        variables = timm.convert(tensors, model_name, path, classifier=False)
        flat = timm.flatten(variables)
        params = {f"encoder/{k}": x for k, x in flat.items() if not k.startswith("head/")}
    if bad := [k for k, x in params.items() if x.dtype != np.float32 or not np.isfinite(x).all()]:
        raise CheckpointError(
            f"pretrain.weights: {path} holds values that are not finite float32, in "
            f"{shorten_list(bad)}."
        )
    return params
