"""metrics.jsonl: one JSON object a line and epoch, for every stage of a run."""

import json
from pathlib import Path
from typing import Any

from egmae_jax import sharding
from egmae_jax.files import write_atomically


class MetricsLog:
    """Appends to metrics.jsonl."""

    def __init__(self, path: Path):
        self._path = path

    def write(self, **row: Any) -> None:
        """Appends one line; of several hosts one writes."""
        if not sharding.is_primary():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget(self, stage: str, round_index: int, *, after_step: int) -> None:
        """Drops a stage's lines after a step: a killed run wrote them, this one will again.

        A last line that was cut off by the kill goes too, and whatever is no line of this log.
        """
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                of_stage = (row["stage"], row["round"]) == (stage, round_index)
                later = row["step"] > after_step
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if not (of_stage and later):
                kept.append(line)
        write_atomically(self._path, b"".join(line + b"\n" for line in kept))
