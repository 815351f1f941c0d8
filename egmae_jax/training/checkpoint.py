"""Checkpoints of a running stage (Orbax), and the parameters of a finished one (safetensors).

A finished stage keeps only its parameters in one safetensors file; its checkpoints, which are four
times as large, are deleted.
"""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from egmae_jax.core import hosts
from egmae_jax.core.errors import UserError
from egmae_jax.core.files import DamagedFileError, read_json, write_json

PyTree = Any
# Version of a checkpoint's tree. Version 1, not recorded in the notes, had batch_stats in params.
FORMAT = 2
_RECORD = "{step}.sha256.json"
logger = logging.getLogger(__name__)


class CheckpointVersionError(UserError):
    """An incompatible version of egmae_jax wrote a checkpoint; the message names a remedy."""


class Checkpoints:
    """The two newest checkpoints of one stage.

    Saving is synchronous, because the next step donates the training state. The SHA-256 of a
    checkpoint's files are written last, to a file next to it. A checkpoint without them is
    incomplete, and one that differs from them is damaged; the previous one is used instead.

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
                cleanup_tmp_directories=True,  # left over if a process was killed while saving
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def save(self, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
        """Saves a checkpoint and replaces a damaged one of the same step.

        Args:
            step: number of steps done.
            tree: arrays to save.
            notes: further values to save, as JSON.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.StandardSave(tree),
                notes=ocp.args.JsonSave(notes | {"format": FORMAT}),
            ),
        )
        if not hosts.is_primary():
            return
        write_json(self._record(step), _checksums(self._step_folder(step)))
        for record in self._folder.glob(_RECORD.format(step="*")):
            if record not in map(self._record, self.steps):
                record.unlink()

    @property
    def steps(self) -> list[int]:
        """Steps of the existing checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(self, abstract: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """Restores the newest intact checkpoint and deletes newer ones, incomplete or damaged.

        Args:
            abstract: tree of arrays with the expected shapes, dtypes and shardings.

        Returns:
            The tree and the notes, or None if there is no complete checkpoint.

        Raises:
            DamagedFileError: a checkpoint is damaged and there is none before it.
            CheckpointVersionError: an incompatible version of egmae_jax wrote the checkpoint.
        """
        for step in self.steps:
            folder, older = self._step_folder(step), [s for s in self.steps if s < step]
            if not self._record(step).exists():
                logger.warning("The checkpoint %s was not finished and is ignored", folder)
                self._manager.delete(step)
                continue
            if (damage := self._find_damage(step)) is None:
                try:
                    return self._restore(step, abstract)
                except (ValueError, KeyError, TypeError) as error:  # intact, but of another network
                    damage = str(error)
            if not older:
                raise DamagedFileError(
                    folder, damage, f"delete {self._folder} to restart this stage"
                )
            logger.warning(
                "The checkpoint %s is damaged (%s): resuming from step %d instead",
                folder,
                damage,
                older[0],
            )
            self._manager.delete(step)
        return None

    def _restore(self, step: int, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        notes = self._manager.restore(
            step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
        ).notes
        if (version := notes.pop("format", 1)) != FORMAT:
            raise CheckpointVersionError(
                f"The checkpoints in {self._folder} were written by "
                f"{'an earlier' if version < FORMAT else 'a later'} version of egmae_jax with "
                f"format {version}; this version reads format {FORMAT}. Finish this stage with "
                f"that version, or delete {self._folder} to restart it; finished stages are kept."
            )
        restored = self._manager.restore(
            step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))
        )
        # Orbax checks only the shapes of arrays on devices.
        pairs = zip(jax.tree.leaves(restored.tree), jax.tree.leaves(abstract), strict=True)
        for saved, expected in pairs:
            if saved.shape != expected.shape:
                raise ValueError(f"it has an array of shape {saved.shape}, not {expected.shape}")
        return restored.tree, notes

    def _step_folder(self, step: int) -> Path:
        return self._folder / str(step)

    def _record(self, step: int) -> Path:
        return self._folder / _RECORD.format(step=step)

    def _find_damage(self, step: int) -> str | None:
        """Describes the first damaged file of a checkpoint; None if all are intact."""
        record = self._record(step)
        try:
            expected = read_json(record)
        except DamagedFileError:
            return f"{record.name} is not readable as JSON"
        actual = _checksums(self._step_folder(step))
        names = sorted(expected.keys() | actual.keys())
        name = next((name for name in names if expected.get(name) != actual.get(name)), None)
        if name is None:
            return None
        if name not in actual:
            return f"{name} is missing"
        return f"{name} is changed: its SHA-256 is not the one recorded"


def _checksums(folder: Path) -> dict[str, str]:
    """Computes the SHA-256 of every file below a folder, by relative path."""
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def delete_checkpoints(folder: Path) -> None:
    """Deletes a stage's checkpoints, if any; all hosts must call it after saving the result."""
    hosts.wait_for_all(f"{folder} is not used any more")
    if hosts.is_primary() and folder.exists():
        shutil.rmtree(folder)
