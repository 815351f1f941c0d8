"""What training leaves on disk: checkpoints of a stage under way (Orbax) and finished parameters.

The only module that knows Orbax. A finished stage leaves its parameters as one safetensors file;
its checkpoints, four times as large, have served their purpose and go.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from flax import traverse_util

from egmae_jax.files import DamagedFileError, write_atomically

PyTree = Any


class Checkpoints:
    """The newest two checkpoints of one stage; one that is still being written never counts.

    Saving is synchronous: the training state is donated to the next step, so nothing may still be
    reading it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(2),
                enable_async_checkpointing=False,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def save(self, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
        """Saves arrays and JSON notes under `step`."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.StandardSave(tree), notes=ocp.args.JsonSave(notes)
            ),
        )

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, None where there is none."""
        return self._manager.latest_step()

    def restore(self, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The newest checkpoint's arrays and notes.

        Args:
            abstract: arrays of the shapes, dtypes and placement that the restored ones shall have.

        Raises:
            FileNotFoundError: there is none.
        """
        step = self._manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"There is no checkpoint in {self._folder}.")
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.StandardRestore(abstract), notes=ocp.args.JsonRestore()
            ),
        )
        return restored.tree, restored.notes


def delete_checkpoints(folder: Path) -> None:
    """Deletes a stage's checkpoints, if there are any, once its result is safe elsewhere."""
    if folder.exists():
        shutil.rmtree(folder)


def save_params(path: Path, params: PyTree) -> None:
    """Writes parameters as safetensors under their paths, 'encoder/stem/conv/kernel'."""
    flat = traverse_util.flatten_dict(params, sep="/")
    write_safetensors(path, {name: np.asarray(leaf) for name, leaf in flat.items()})


def load_params(path: Path) -> PyTree:
    """Reads what `save_params` wrote, a nested dict of numpy arrays.

    Raises:
        DamagedFileError: the file is not whole.
    """
    try:
        return traverse_util.unflatten_dict(safetensors.numpy.load_file(path), sep="/")
    except safetensors.SafetensorError as error:
        raise DamagedFileError(path, error) from None


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file, whole or not at all."""
    contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    write_atomically(path, safetensors.numpy.save(contiguous, metadata={"format": "pt"}))
