"""TensorBoard's event files beside metrics.jsonl: `tensorboard --logdir=W/tensorboard`.

What TensorBoard calls a run is a stage and round here, such as finetune/mae/round_0, and a tag is a
metric of a section of the config, such as finetune/loss. So one chart has the curves of all
branches and rounds, and of all workdirs below the --logdir.
"""

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row of metrics.jsonl: its numbers but for round, step and time."""
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
        self._stage: tuple[str, int] | None = None  # the one under way
        self._writer: Any = None

    def begin(self, stage: str, round_index: int, *, after_step: int = 0) -> None:
        """Begins a file, which has TensorBoard drop what older files hold of later steps.

        Args:
            stage: 'pretrain', or 'finetune/' and the branch.
            round_index: round of the stage.
            after_step: last step that counts; a run that was killed takes later ones again.
        """
        # Imported here, as it imports torch where there is one, which takes long.
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
        """Adds the numbers of a row of metrics.jsonl."""
        from tensorboardX.summary import scalar

        stage, step = row["stage"], row["step"]
        for name, value in numbers(row).items():
            summary = scalar(f"{stage.split('/')[0]}/{name}", value)
            self._add(stage, row["round"], step, summary, row.get("time"))
        self._writer.flush()

    def write_picture(self, stage: str, round_index: int, step: int, name: str, png: bytes) -> None:
        """Adds a picture in PNG."""
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
