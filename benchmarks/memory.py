"""Peak memory of a command and its children."""

import subprocess
import time
from collections.abc import Sequence

import psutil


def peak_memory(command: Sequence[str], *, period: float = 0.05) -> float:
    """Runs a command and returns its peak memory.

    Args:
        command: program and arguments; what it prints is dropped.
        period: seconds between two looks.

    Returns:
        Megabytes: the highest sum, over all its processes, of the memory each has to itself and
        its share of what they have in common (PSS).

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    root, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        total = 0
        try:
            for member in (root, *root.children(recursive=True)):
                total += member.memory_full_info().pss
        except psutil.NoSuchProcess:  # it has just ended
            continue
        peak = max(peak, total)
        time.sleep(period)
    if process.returncode:
        error = process.stderr.read() if process.stderr else b""
        raise subprocess.CalledProcessError(process.returncode, command, stderr=error)
    return peak / 1e6
