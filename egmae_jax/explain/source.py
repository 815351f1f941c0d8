"""Images of a data set, and how pre-training corrupts and reconstructs each of them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core import platform, rng
from egmae_jax.core.errors import ConfigError
from egmae_jax.data import datasets, masks, pipeline, splits
from egmae_jax.data.datasets import DataError
from egmae_jax.data.prepare import Prepared
from egmae_jax.explain.panels import Panels, compute_panels
from egmae_jax.models import transfer
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.run import images, rules
from egmae_jax.run.config import load_config
from egmae_jax.run.saved_run import RunError
from egmae_jax.run.workdir import Paths, require_same_run
from egmae_jax.training import pretrain


class Source:
    """Images of a data set in their evaluation view, with corruption and reconstruction.

    Args:
        config: config of the data and the corruption.
        workdir: folder of a run whose pre-training is finished; None: images are corrupted, but
            not reconstructed.

    Attributes:
        config: the config, frozen.
        prepared: images of the data set.

    Raises:
        ConfigError: the config is invalid.
        RunError: the workdir has no finished pre-training.
        DataError: the images cannot be read, or differ from those of the run.
        DamagedFileError: a file of the workdir cannot be read.
    """

    def __init__(self, config: ConfigDict, workdir: Path | None):
        rules.check(config, num_devices=1)
        self.config = FrozenConfigDict(config)
        self._root = Path(config.data.dir).expanduser()
        if workdir is not None:
            paths = _pretrained(config, workdir)
            if not self._root.is_dir():  # `prepare` would write phantoms there
                raise DataError(
                    f"There is no folder {self._root}; --data_dir sets the folder of the images."
                )
        self.prepared = images.prepare_images(config, images.list_images(config))
        self._view = pipeline.evaluation_view(
            self.prepared, color=config.data.color, **images.view_settings(config)
        )
        self._key = rng.stage_key(config.seed, "entropy_maps")
        self._corrupt = functools.partial(self._program(None), None)
        self._reconstruct, self._part_of = self._corrupt, dict[str, str]()
        if workdir is not None:
            model = pretrain.create_autoencoder(self.config)
            params = transfer.load_autoencoder(paths.autoencoder(0), model)
            self._reconstruct = functools.partial(self._program(model), params)
            self._part_of = _parts(paths.splits(0), self.prepared)

    def _program(self, model: MaskedAutoencoder | None) -> Callable[..., Any]:
        """Compiles `pretrain.reconstruct`; a model of None only corrupts."""
        return platform.jit(
            functools.partial(pretrain.reconstruct, model=model, config=self.config)
        )

    def panels(self, index: int, *, reconstruct: bool = True) -> Panels:
        """Computes the panels of one image; its noise depends only on the seed and the index.

        Args:
            index: index of the image in `prepared`.
            reconstruct: whether the image is reconstructed, if there is a workdir.
        """
        pixels = self._view.load(np.array([index])).pixels[0]
        program = self._reconstruct if reconstruct else self._corrupt
        return compute_panels(program, pixels, jax.random.fold_in(self._key, index))

    def lesion(self, index: int) -> np.ndarray | None:
        """Returns the lesion mask of an image, bool [H, W]; see `masks.lesion_mask`.

        Raises:
            DataError: the mask cannot be used.
        """
        height, width = self.prepared.sizes[index].tolist()
        return masks.lesion_mask(
            self._root,
            self.prepared.files[index],
            datasets.get(self.config.data.name),
            image_shape=(height, width),
            **images.view_settings(self.config),
        )

    def unseen_indices(self) -> np.ndarray:
        """Returns the indices of the run's validation images; of all images without a workdir.

        Raises:
            DataError: the data folder has none of the run's validation images.
        """
        if not self._part_of:
            return np.arange(len(self.prepared.files))
        parts = [self._part_of.get(file) for file in self.prepared.files]
        indices = np.flatnonzero([part == "validation" for part in parts])
        if not len(indices):
            raise DataError(
                f"{self._root} has none of the run's validation images; --data_dir sets the "
                "folder of the images."
            )
        return indices

    def caption(self, index: int) -> str:
        """Returns a caption of two lines: the name of the file, and the class and part."""
        file = self.prepared.files[index]
        part = self._part_of.get(file)
        label = self.prepared.classes[self.prepared.labels[index]]
        return f"{Path(file).name}\n{label}" + (f", {part}" if part else "")


def resolve_config(workdir: Path | None, config: ConfigDict | None) -> ConfigDict:
    """Returns `config`, or the config of the workdir if `config` is None.

    Args:
        workdir: folder of a run, or None.
        config: config from the command line, or None.

    Raises:
        ConfigError: both are None, or the two configs differ.
        DamagedFileError: the workdir's config.json is missing or cannot be read.
    """
    if config is None:
        if workdir is None:
            raise ConfigError("Give --workdir=W of a run, or --config=configs/busi.py.")
        return load_config(workdir / "config.json")
    if workdir is not None:
        require_same_run(workdir, config)
    return config


def _pretrained(config: ConfigDict, workdir: Path) -> Paths:
    """Returns the paths of a run, or raises RunError if its first pre-training is not finished."""
    paths = Paths.of(workdir, config)
    if not paths.autoencoder(0).exists():
        raise RunError(
            f"There is no {paths.autoencoder(0)}. If config.branches has 'mae', run main.py with "
            "--stage=pretrain first; or give --config without --workdir to draw no reconstructions."
        )
    return paths


def _parts(path: Path, prepared: Prepared) -> dict[str, str]:
    """Reads the part of each file from splits.json.

    Raises:
        DataError: a file of the data set has changed since the run.
    """
    rows = splits.read(path)
    hashes = dict(zip(prepared.files, prepared.sha256, strict=True))
    for row in rows:
        if hashes.get(row["file"], row["sha256"]) != row["sha256"]:
            raise DataError(f"{row['file']} is not the file that the run was trained on.")
    return {row["file"]: row["split"] for row in rows}
