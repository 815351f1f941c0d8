"""What training leaves on disk: checkpoints of a stage under way (Orbax) and finished parameters.

The only module that knows Orbax. A finished stage leaves its parameters as one safetensors file;
its checkpoints, four times as large, have served their purpose and go.
"""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from egmae_jax.core import sharding
from egmae_jax.core.errors import UserError
from egmae_jax.core.files import DamagedFileError, read_json, write_json
from egmae_jax.core.tensors import read_safetensors, write_safetensors

PyTree = Any
# Version of a checkpoint's tree. In 1, which wrote no version, params held batch_stats.
FORMAT = 2
_RECORD = "{step}.sha256.json"
logger = logging.getLogger(__name__)


class CheckpointVersionError(UserError):
    """A checkpoint holds another tree than this version's; the message says what to do."""


class Checkpoints:
    """The newest two checkpoints of one stage; one that is still being written never counts.

    Saving is synchronous: the training state is donated to the next step, so nothing may still be
    reading it. Beside every checkpoint lie the SHA-256 of its files, written last: what differs
    from them is damaged, and the checkpoint before it is used.

    Args:
        folder: folder of the stage's checkpoints.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(2),
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,  # left by a process that was killed as it saved
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def save(self, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
        """Saves arrays and JSON notes under `step`, in place of a damaged one of that step."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.StandardSave(tree),
                notes=ocp.args.JsonSave(notes | {"format": FORMAT}),
            ),
        )
        if not sharding.is_primary():
            return
        write_json(self._record(step), _checksums(self._step_folder(step)))
        for record in self._folder.glob(_RECORD.format(step="*")):
            if record not in map(self._record, self.steps):
                record.unlink()

    @property
    def steps(self) -> list[int]:
        """The steps that checkpoints are of, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(self, abstract: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """The arrays and notes of the newest checkpoint that is whole; None if there is none.

        Newer ones are deleted. One without a record was being written when the process died.

        Args:
            abstract: arrays of the shapes, dtypes and placement that the restored ones shall have.

        Raises:
            DamagedFileError: one is damaged, and there is none before it.
            CheckpointVersionError: the newest that is whole is of another version of this package.
        """
        for step in self.steps:
            folder, older = self._step_folder(step), [s for s in self.steps if s < step]
            if not self._record(step).exists():
                logger.warning("The checkpoint %s was not finished: left out", folder)
                self._manager.delete(step)
                continue
            if (damage := self._damage(step)) is None:
                try:
                    return self._restore(step, abstract)
                except (ValueError, KeyError, TypeError) as error:  # whole, but of another network
                    damage = str(error)
            if not older:
                raise DamagedFileError(
                    folder, damage, f"delete {self._folder} to begin this stage anew"
                )
            logger.warning(
                "The checkpoint %s is damaged (%s): going on from step %d", folder, damage, older[0]
            )
            self._manager.delete(step)
        return None

    def _restore(self, step: int, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        notes = self._manager.restore(
            step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
        ).notes
        if (written := notes.pop("format", 1)) != FORMAT:
            raise CheckpointVersionError(
                f"The checkpoints in {self._folder} were written by "
                f"{'an earlier' if written < FORMAT else 'a later'} version of egmae_jax and hold "
                "another tree than this version's. Finish this stage with that version, or delete "
                f"{self._folder} to begin it anew; stages that have finished stay as they are."
            )
        restored = self._manager.restore(
            step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))
        )
        # Orbax compares the shapes of device arrays only.
        pairs = zip(jax.tree.leaves(restored.tree), jax.tree.leaves(abstract), strict=True)
        for saved, expected in pairs:
            if saved.shape != expected.shape:
                raise ValueError(f"an array of shape {saved.shape}, not {expected.shape}")
        return restored.tree, notes

    def _step_folder(self, step: int) -> Path:
        return self._folder / str(step)

    def _record(self, step: int) -> Path:
        return self._folder / _RECORD.format(step=step)

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, if anything."""
        record = self._record(step)
        try:
            expected = read_json(record)
        except DamagedFileError:
            return f"{record.name} is not what was written"
        actual = _checksums(self._step_folder(step))
        names = sorted(expected.keys() | actual.keys())
        name = next((name for name in names if expected.get(name) != actual.get(name)), None)
        if name is None:
            return None
        return f"{name} is {'missing' if name not in actual else 'not what was written'}"


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def delete_checkpoints(folder: Path) -> None:
    """Deletes a stage's checkpoints, if there are any, once its result is safe elsewhere."""
    sharding.wait_for_all(f"{folder} is not used any more")
    if sharding.is_primary() and folder.exists():
        shutil.rmtree(folder)


def save_params(path: Path, params: PyTree) -> None:
    """Writes parameters as safetensors under their paths, 'encoder/stem/conv/kernel'."""
    flat = traverse_util.flatten_dict(params, sep="/")
    write_safetensors(path, {name: np.asarray(leaf) for name, leaf in flat.items()})


def load_params(path: Path) -> PyTree:
    """Reads what `save_params` wrote, a nested dict of numpy arrays.

    Raises:
        DamagedFileError: the file is not what was written.
    """
    try:
        flat = read_safetensors(path)
    except ValueError as error:
        raise DamagedFileError(path, error) from None
    inner = {name[:i] for name in flat for i, letter in enumerate(name) if letter == "/"}
    if both := sorted(inner & flat.keys()):
        raise DamagedFileError(path, f"{both[0]!r} is a tensor and a group of tensors")
    return traverse_util.unflatten_dict(flat, sep="/")
