"""Writes metrics.jsonl, one JSON object per epoch and stage, and forwards each to trackers."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from egmae_jax.core import hosts
from egmae_jax.core.files import write_atomically
from egmae_jax.run.tensorboard import EventFiles, numbers
from egmae_jax.run.trackers import Tracker

logger = logging.getLogger(__name__)


class MetricsLog:
    """Writes metrics.jsonl and forwards each row to TensorBoard and the trackers.

    On several hosts only the primary host writes. An error of a tracker does not stop the run; the
    first error of each tracker is logged.

    Args:
        path: path of metrics.jsonl.
        events: event files for TensorBoard; None writes none.
        trackers: trackers that receive the metrics of every row.
    """

    def __init__(
        self, path: Path, events: EventFiles | None = None, trackers: Sequence[Tracker] = ()
    ):
        self._path = path
        self._events = events if hosts.is_primary() else None
        self._trackers = trackers
        self._failed: list[Tracker] = []

    def write(self, **row: Any) -> None:
        """Appends one row to metrics.jsonl and forwards it."""
        if not hosts.is_primary():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._events is not None:
            self._events.write(row)
        for tracker in self._trackers:
            try:
                tracker.log(row["stage"], row["round"], row["step"], numbers(row))
            except Exception as error:  # noqa: BLE001 (a user's tracker must not stop the run)
                if tracker not in self._failed:
                    logger.warning(
                        "The tracker %s failed at step %d of %s (%r). The run continues to call "
                        "it, but further errors of the tracker are not logged.",
                        type(tracker).__name__,
                        row["step"],
                        row["stage"],
                        error,
                    )
                    self._failed.append(tracker)

    def write_picture(self, stage: str, round_index: int, step: int, name: str, png: bytes) -> None:
        """Adds a picture, as PNG bytes, to TensorBoard's event files, if there are any."""
        if self._events is not None:
            self._events.write_picture(stage, round_index, step, name, png)

    def forget(self, stage: str, round_index: int, *, after_step: int) -> None:
        """Deletes a stage's rows after `after_step`, which will be trained and written again.

        An incomplete last line, which a killed run can leave, is deleted too.
        """
        if not hosts.is_primary():
            return
        if self._path.exists():
            kept = (
                line
                for line, row in read(self._path)
                if (row["stage"], row["round"]) != (stage, round_index) or row["step"] <= after_step
            )
            write_atomically(self._path, b"".join(line + b"\n" for line in kept))
        if self._events is not None:
            self._events.begin(stage, round_index, after_step=after_step)


def read(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields each line of metrics.jsonl with its parsed row; nothing if there is no file.

    Lines without stage, round and step, such as an incomplete last line, are skipped.
    """
    content = path.read_bytes() if path.exists() else b""
    for line in content.splitlines():
        try:
            row = json.loads(line)
            _ = row["step"] > 0
            is_row = isinstance(row["stage"], str) and isinstance(row["round"], int)
        except (ValueError, TypeError, KeyError):
            continue
        if is_row:
            yield line, row
