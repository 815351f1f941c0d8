"""metrics.jsonl, one JSON object per epoch and stage, and whom else it is forwarded to."""

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

    Of several hosts of a run only the first does. An error of a tracker does not stop the run; the
    first is logged.

    Args:
        path: path of metrics.jsonl.
        events: TensorBoard's event files; None writes none.
        trackers: take the metrics of each row.
    """

    def __init__(
        self, path: Path, events: EventFiles | None = None, trackers: Sequence[Tracker] = ()
    ):
        self._path = path
        self._events = events if hosts.is_primary() else None
        self._trackers = trackers
        self._failed: list[Tracker] = []

    def write(self, **row: Any) -> None:
        """Appends one line."""
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
            except Exception as error:  # the user's own code: no result depends on it
                if tracker not in self._failed:
                    logger.warning(
                        "The tracker %s failed at step %d of %s (%r). The run goes on, and so do "
                        "its calls; further errors of the tracker are not logged.",
                        type(tracker).__name__,
                        row["step"],
                        row["stage"],
                        error,
                    )
                    self._failed.append(tracker)

    def write_picture(self, stage: str, round_index: int, step: int, name: str, png: bytes) -> None:
        """Shows a picture in TensorBoard, if there are events."""
        if self._events is not None:
            self._events.write_picture(stage, round_index, step, name, png)

    def forget(self, stage: str, round_index: int, *, after_step: int) -> None:
        """Drops a stage's rows after a step: a killed run wrote them, and this one will again.

        A last line that the kill has cut off goes, too.
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
    """The lines of a metrics.jsonl, as they are and parsed; none where there is no file.

    What a kill has cut off, and whatever else has no stage, round and step, is passed over.
    """
    content = path.read_bytes() if path.exists() else b""
    for line in content.splitlines():
        try:
            row = json.loads(line)
            _ = row["step"] > 0
            known = isinstance(row["stage"], str) and isinstance(row["round"], int)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if known:
            yield line, row
