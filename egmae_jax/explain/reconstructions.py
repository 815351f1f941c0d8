"""Draws reconstructions of a few validation images during pre-training, for TensorBoard."""

import functools
import io
from typing import Any

import jax
import numpy as np

from egmae_jax.core import hosts, platform, rng, sharding
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.run.context import Run
from egmae_jax.training import pretrain

PyTree = Any
_IMAGES = 4


class ReconstructionPanels:
    """Draws the same images with the same noise every `tensorboard.panel_epochs` epochs.

    It also draws them after the last epoch.

    Args:
        run: the run.
        split: index of the split used for pre-training.
        model: the masked autoencoder.
    """

    def __init__(self, run: Run, split: int, model: MaskedAutoencoder):
        self._run, self._split = run, split
        self._program = platform.jit(
            functools.partial(pretrain.reconstruct, model=model, config=run.config)
        )

    def __call__(self, epoch: int, step: int, variables: PyTree) -> None:
        """Draws the images if this epoch is due; all hosts must call it.

        Args:
            epoch: number of the epoch that has ended.
            step: number of optimizer steps done.
            variables: variables of the masked autoencoder.
        """
        config = self._run.config
        every = config.tensorboard.panel_epochs
        if not (config.tensorboard.events and every):
            return
        if epoch % every and epoch != config.pretrain.epochs:
            return
        params = sharding.to_host(variables["params"])
        if hosts.is_primary():
            png = self._draw(params)
            self._run.log.write_picture("pretrain", self._split, step, "reconstructions", png)

    def _draw(self, params: PyTree) -> bytes:
        from egmae_jax.explain import entropy_maps, panels  # importing matplotlib is slow

        data, program = self._run.data, functools.partial(self._program, params)
        held_out = data.indices(self._split, "validation")
        indices = entropy_maps.choose(data.prepared, _IMAGES, held_out)
        key = rng.stage_key(self._run.config.seed + self._split, "panels")
        rows = [
            panels.compute_panels(program, pixels, jax.random.fold_in(key, index))
            for index, pixels in zip(indices, data.pixels(np.array(indices)), strict=True)
        ]
        captions = [data.prepared.classes[data.prepared.labels[i]] for i in indices]
        note = entropy_maps.describe_corruption(self._run.config)
        png = io.BytesIO()
        panels.draw_sheet(rows, captions, note=note).savefig(png, format="png")
        return png.getvalue()
