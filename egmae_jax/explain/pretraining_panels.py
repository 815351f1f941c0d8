"""Draws what pre-training makes of a few validation images, for TensorBoard."""

import functools
import io
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from egmae_jax.core import platform, rng, sharding
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.run.context import Run
from egmae_jax.training import pretrain

PyTree = Any
_IMAGES = 4


class ReconstructionPanels:
    """After every `tensorboard.panel_epochs`-th epoch and the last: the same images and noise.

    Args:
        run: the run.
        split: that is pre-trained on.
        model: the masked autoencoder.
    """

    def __init__(self, run: Run, split: int, model: MaskedAutoencoder):
        self._run, self._split, self._model = run, split, model

    def __call__(self, epoch: int, step: int, variables: PyTree) -> None:
        """Draws them if they are due; all hosts call it.

        Args:
            epoch: the one that has ended.
            step: its last.
            variables: of the masked autoencoder.
        """
        config = self._run.config
        every = config.tensorboard.panel_epochs
        if not (config.tensorboard.events and every):
            return
        if epoch % every and epoch != config.pretrain.epochs:
            return
        params = sharding.to_host(variables["params"])
        if sharding.is_primary():
            png = self._draw(params)
            self._run.log.write_picture("pretrain", self._split, step, "reconstructions", png)

    def _draw(self, params: PyTree) -> bytes:
        from egmae_jax.explain import entropy_maps, panels  # matplotlib takes a while to import

        data = self._run.data
        indices = entropy_maps.choose(
            data.prepared, _IMAGES, data.indices(self._split, "validation")
        )
        key = rng.stage_key(self._run.config.seed + self._split, "panels")
        drawn = [
            panels.compute_panels(
                lambda pixels, key: self._program(params, pixels, key),
                pixels,
                jax.random.fold_in(key, index),
            )
            for index, pixels in zip(indices, data.pixels(np.array(indices)), strict=True)
        ]
        captions = [data.prepared.classes[data.prepared.labels[i]] for i in indices]
        sheet = io.BytesIO()
        note = entropy_maps.describe(self._run.config)
        panels.draw_sheet(drawn, captions, note=note).savefig(sheet, format="png")
        return sheet.getvalue()

    @functools.cached_property
    def _program(self) -> Callable:
        return platform.jit(
            functools.partial(pretrain.reconstruct, model=self._model, config=self._run.config)
        )
