"""Writes metrics as event files for TensorBoard: `tensorboard --logdir=<workdir>/tensorboard`.

Each stage and round, such as finetune/mae/round_0, is a run in TensorBoard. Tags are named after
the config section and the metric, such as finetune/loss. Therefore one chart shows all branches and
rounds, and all workdirs below --logdir.
"""

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics in a row of metrics.jsonl: all numbers except round, step and time."""
    return {
        name: value
        for name, value in row.items()
        if name not in ("round", "step", "time")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


class EventFiles:
    """Event files of every stage and round, in <folder>/<stage>/round_<i>/."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._stage: tuple[str, int] | None = None  # stage and round of the open file
        self._writer: Any = None

    def begin(self, stage: str, round_index: int, *, after_step: int = 0) -> None:
        """Begins a new file, whose first event makes TensorBoard discard steps after `after_step`.

        Args:
            stage: 'pretrain', or 'finetune/' and the branch.
            round_index: index of the round.
            after_step: last step to keep; a resumed run repeats later steps.
        """
        # Imported here because it imports torch, if installed, which is slow.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._writer is not None:
            self._writer.close()
        folder = self._folder / stage / f"round_{round_index}"
        folder.mkdir(parents=True, exist_ok=True)
        self._stage = stage, round_index
        self._writer = EventsWriter(str(folder.absolute() / "events"), f".{after_step:08d}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(
            Event(wall_time=time.time(), step=after_step + 1, session_log=start)
        )
        self._writer.flush()

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds the metrics in a row of metrics.jsonl."""
        from tensorboardX.summary import scalar

        stage, step = row["stage"], row["step"]
        for name, value in numbers(row).items():
            summary = scalar(f"{stage.split('/')[0]}/{name}", value)
            self._add(stage, row["round"], step, summary, row.get("time"))
        self._writer.flush()

    def write_picture(self, stage: str, round_index: int, step: int, name: str, png: bytes) -> None:
        """Adds a picture, given as PNG bytes."""
        from tensorboardX.summary import image

        with PIL.Image.open(io.BytesIO(png)) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        summary = image(f"{stage.split('/')[0]}/{name}", pixels, dataformats="HWC")
        self._add(stage, round_index, step, summary)
        self._writer.flush()

    def _add(
        self, stage: str, round_index: int, step: int, summary: Any, when: float | None = None
    ) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if self._stage != (stage, round_index):
            self.begin(stage, round_index)
        event = Event(wall_time=when or time.time(), step=step, summary=summary)
        self._writer.write_event(event)
