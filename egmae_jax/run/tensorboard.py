"""TensorBoard's event files, made of metrics.jsonl: `tensorboard --logdir=W/tensorboard`.

What TensorBoard calls a run is a stage and round here, such as finetune/mae/round_0, and a tag is a
metric of a section of the recipe, such as finetune/loss. So one chart has the curves of all
branches and rounds, each of which can be switched off, and of all workdirs below the --logdir.

An event file can only grow, but a run that was killed takes some steps again. So the file of a
stage that is gone on with is written anew from the lines of metrics.jsonl that still hold, and from
the pictures that lie beside it.
"""

import contextlib
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from egmae_jax.core.files import write_atomically

# tensorboardX is imported where it is used: it imports torch where there is one, which takes long.

_EVENTS = "events.out.tfevents.*"
_LARGEST_STEP = 2**63 - 1  # of an event


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a line of metrics.jsonl: its numbers, but for those that say of when it is."""
    return {
        name: value
        for name, value in row.items()
        if name not in ("round", "step", "time")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


class EventFiles:
    """A file for every stage and round, in <folder>/<stage>/round_<i>/."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._open: tuple[Path, Any] | None = None  # the stage under way and its writer

    def begin(
        self, stage: str, round_index: int, rows: Iterable[Mapping[str, Any]], *, after_step: int
    ) -> None:
        """Writes the file of a stage as it was after a step, in place of what is there.

        Args:
            stage: such as 'finetune/mae'.
            round_index: of the stage.
            rows: its lines of metrics.jsonl up to that step.
            after_step: pictures of later steps are deleted.
        """
        self.close()
        folder = self._of(stage, round_index)
        for path in folder.glob(_EVENTS):
            if path.stat().st_size:
                os.truncate(path, 0)  # a TensorBoard that is open goes on to the next file
            else:
                path.unlink()
        for row in rows:
            self._add_row(stage, round_index, row)
        for step, name, path in _pictures(folder):
            if step > after_step:
                path.unlink()
            else:
                self._add_picture(stage, round_index, step, name, path.read_bytes())
        self._flush()

    def complete(
        self, stages: Iterable[tuple[str, int]], rows: Iterable[Mapping[str, Any]]
    ) -> None:
        """Makes the files of those stages and rounds that have lines, but no file."""
        rows = list(rows)
        for stage, index in stages:
            lines = [row for row in rows if (row["stage"], row["round"]) == (stage, index)]
            there = self._of(stage, index).glob(_EVENTS)
            if lines and not any(path.stat().st_size for path in there):
                self.begin(stage, index, lines, after_step=_LARGEST_STEP)
        self.close()

    def write(self, stage: str, round_index: int, row: Mapping[str, Any]) -> None:
        """Adds the numbers of a line of metrics.jsonl."""
        self._add_row(stage, round_index, row)
        self._flush()

    def write_picture(self, stage: str, round_index: int, step: int, name: str, png: bytes) -> None:
        """Adds a picture, and keeps it beside the event file as <name>_<step>.png."""
        write_atomically(self._of(stage, round_index) / f"{name}_{step:08d}.png", png)
        self._add_picture(stage, round_index, step, name, png)
        self._flush()

    def close(self) -> None:
        """Closes the file of the stage under way."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _flush(self) -> None:
        if self._open is not None:
            self._open[1].flush()

    def _add_row(self, stage: str, round_index: int, row: Mapping[str, Any]) -> None:
        """Leaves out a line that is none of a run's."""
        from tensorboardX.proto.summary_pb2 import Summary

        section = stage.split("/")[0]
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            values = [
                Summary.Value(tag=f"{section}/{name}", simple_value=number)
                for name, number in numbers(row).items()
            ]
            self._add(stage, round_index, row["step"], values, row.get("time"))

    def _add_picture(self, stage: str, round_index: int, step: int, name: str, png: bytes) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        if not png.startswith(b"\x89PNG") or len(png) < 24:
            return  # damaged
        width, height = struct.unpack(">II", png[16:24])  # where the PNG standard has them
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        value = Summary.Value(tag=f"{stage.split('/')[0]}/{name}", image=image)
        self._add(stage, round_index, step, [value])

    def _add(
        self, stage: str, round_index: int, step: int, values: list[Any], when: float | None = None
    ) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        event = Event(
            wall_time=time.time() if when is None else when,
            step=step,
            summary=Summary(value=values),
        )
        self._writer(self._of(stage, round_index)).write_event(event)

    def _writer(self, folder: Path) -> Any:
        """Of the events of a stage, which it begins if it is not under way."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._open is None or self._open[0] != folder:
            self.close()
            folder.mkdir(parents=True, exist_ok=True)
            writer = EventsWriter(str(folder.absolute() / "events"))
            # A TensorBoard that has read the file in whose place this is drops what it read.
            start = SessionLog(status=SessionLog.START)
            writer.write_event(Event(wall_time=time.time(), step=0, session_log=start))
            self._open = folder, writer
        return self._open[1]

    def _of(self, stage: str, round_index: int) -> Path:
        return self._folder / stage / f"round_{round_index}"


def _pictures(folder: Path) -> Iterator[tuple[int, str, Path]]:
    """Step, name and file of the pictures of a stage, the earliest first."""
    for path in sorted(folder.glob("*.png")):
        if match := re.fullmatch(r"(.+)_(\d+)", path.stem):
            yield int(match[2]), match[1], path
