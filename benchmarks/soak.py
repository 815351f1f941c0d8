"""Random faults: a run that is killed, damaged or starved must end in the bits of another.

python -m benchmarks.soak [--trials=20] [--faults=killed,...] [--seed=0] [--jobs=2] [--json=FILE]

Every trial is a whole run on phantoms with a network of four blocks, seconds long: a fault, then
the same command again. It is lost when the results are not those of the unbroken run, bit for bit,
or when the second command does not end. Where a fault is noticed, the message must name the file.
A trial draws from `--seed`, the fault's name and its own number.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table
import safetensors

from egmae_jax.core import preemption, tensors
from egmae_jax.core.errors import UserError
from tests import tiny

FIELDS = {
    "rounds__count": 1,
    "branches": ("mae",),
    "checkpoint__save_seconds": 0.0,
    "pretrain__epochs": 4,
    "finetune__epochs": 4,
    # What tests/tiny.py spares tests, and users have.
    "evaluation__report": True,
    "tensorboard__events": True,
}
TOLD = 3  # exit status of a run that ended in a sentence
TIMEOUT = 180  # seconds
_processes = multiprocessing.get_context("forkserver")


# --- A run, in a process of its own --------------------------------------------------------------


def run(folder: Path, workdir: Path, armed: dict[str, Any]) -> None:
    """Runs a recipe with a fault in its process; its output is appended to `said`."""
    with (folder / "said").open("ab") as said:  # by a process that no limit on files holds for
        writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=said)
    os.dup2(writer.stdin.fileno(), 1)
    os.dup2(writer.stdin.fileno(), 2)
    if "operation" in armed:
        die_at_operation(workdir, armed["operation"])
    if "count" in armed:
        count_operations(workdir, Path(armed["count"]))
    if "file_bytes" in armed:
        resource.setrlimit(resource.RLIMIT_FSIZE, (armed["file_bytes"], armed["file_bytes"]))
    if "clock" in armed:
        turn_back(armed["clock"])
    from egmae_jax import experiment
    from egmae_jax.core import console

    console.set_up_logging()
    preemption.install()
    (folder / "started").touch()
    shared = folder.parent
    fields = FIELDS | armed.get("fields", {})
    config = tiny.make_config(shared / "data", shared / "cache", **fields)
    try:
        experiment.run(config, workdir)
    except UserError as error:
        print("TOLD:", error)
        sys.exit(TOLD)
    except preemption.Preempted as stop:
        stop.exit()


def _on_change(workdir: Path, do: Callable[[], None]) -> None:
    """Calls `do` before each operation of Python that changes a file of the workdir."""
    changes = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
    place = str(workdir)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in changes) and str(arguments[0]).startswith(place):
            do()

    sys.addaudithook(hook)


def die_at_operation(workdir: Path, number: int) -> None:
    """Kills this process immediately before the file operation of a given number."""
    left = [number]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _on_change(workdir, count)


def count_operations(workdir: Path, path: Path) -> None:
    """Writes the number of file operations to a file."""
    file = path.open("a", buffering=1)
    _on_change(workdir, lambda: print(file=file))


def turn_back(seconds: float) -> None:
    """Lets the wall clock run backwards from now on, by a number of seconds each second."""
    began, real = time.time(), time.time
    time.time = lambda: began - seconds * (real() - began)
    time.time_ns = lambda: int(time.time() * 1e9)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Folder and random numbers of one trial, and the outcome of an undisturbed run."""

    folder: Path
    random: random.Random
    expected: dict[str, np.ndarray]
    seconds: float  # of an unbroken run
    operations: int  # that change a file

    @property
    def workdir(self) -> Path:
        return self.folder / "workdir"

    def start(self, workdir: Path | None = None, **armed: Any) -> Any:
        (self.folder / "started").unlink(missing_ok=True)
        arguments = (self.folder, workdir or self.workdir, armed)
        process = _processes.Process(target=run, args=arguments)
        process.start()
        while process.is_alive() and not (self.folder / "started").exists():
            time.sleep(0.01)
        return process

    def finish(self, workdir: Path | None = None, **armed: Any) -> int | None:
        process = self.start(workdir, **armed)
        process.join(TIMEOUT)
        hangs = process.is_alive()
        process.kill()
        process.join()
        return None if hangs else process.exitcode

    def interrupt(self, number: int = signal.SIGKILL, **armed: Any) -> int:
        """Starts the run, sends it a signal at a random moment and returns its exit status."""
        process = self.start(**armed)
        time.sleep(self.random.uniform(0, self.seconds))
        if process.is_alive():
            os.kill(process.pid, number)
        process.join(TIMEOUT)
        process.kill()
        process.join()
        return process.exitcode

    def ends_as_expected(self, workdir: Path | None = None) -> str:
        """Returns '' if the same command ends in an undisturbed run's bits, else what is wrong."""
        status = self.finish(workdir)
        if status != 0:
            return f"exit status {status}: {self.said()}"
        return self.differs(workdir)

    def differs(self, workdir: Path | None = None) -> str:
        found = outcome(workdir or self.workdir)
        if found.keys() != self.expected.keys():
            return f"other files: {sorted(found.keys() ^ self.expected.keys())}"
        names = [n for n, x in self.expected.items() if not np.array_equal(x, found[n])]
        return f"other bits: {names[:3]}" if names else ""

    def said(self) -> str:
        return (self.folder / "said").read_text()


def outcome(workdir: Path) -> dict[str, np.ndarray]:
    """Returns what a run computed: parameters, predictions and all numbers of results.json."""
    results = json.loads((workdir / "results.json").read_text())
    del results["config"], results["made_with"]  # these tell the workdir
    return tiny.outcome(workdir) | {"results.json": np.array(json.dumps(results))}


# --- Faults: each returns '' or what was lost ----------------------------------------------------


def killed(trial: Trial) -> str:
    """Kills the run with SIGKILL at a random moment, up to three times."""
    for _ in range(trial.random.randint(1, 3)):
        trial.interrupt()
    return trial.ends_as_expected()


def killed_at_a_file_operation(trial: Trial) -> str:
    """Kills the run immediately before a random operation on any file of the workdir."""
    status = trial.finish(operation=trial.random.randrange(trial.operations))
    return trial.ends_as_expected() if status == -signal.SIGKILL else f"exit status {status}"


def preempted(trial: Trial) -> str:
    """Sends SIGTERM at a random moment; the run must save and end with status 143."""
    status = trial.interrupt(signal.SIGTERM)
    if status not in (0, 128 + signal.SIGTERM):
        return f"exit status {status}: {trial.said()}"
    return trial.ends_as_expected()


def _harm(trial: Trial, path: Path) -> str:
    kind = trial.random.choice(["bit", "cut", "gone"])
    content = bytearray(path.read_bytes())
    if kind == "gone" or not content:
        path.unlink()
        return f"{path.name} gone"
    if kind == "bit":
        content[trial.random.randrange(len(content))] ^= 1 << trial.random.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: trial.random.randrange(len(content))])
    return f"{path.name} {kind}"


def checkpoint_damaged(trial: Trial) -> str:
    """Kills the run, then truncates, deletes or flips a bit of a file of the newest checkpoint."""
    newest = None
    while newest is None:  # until it leaves a checkpoint
        shutil.rmtree(trial.workdir, ignore_errors=True)
        trial.interrupt()
        found = [p for p in trial.workdir.glob("**/checkpoints/*") if p.name.isdigit()]
        newest = max(found, key=lambda p: int(p.name), default=None)
    files = sorted(p for p in newest.rglob("*") if p.is_file())
    _harm(trial, trial.random.choice(files))
    status = trial.finish()
    if status == 0:
        return trial.differs()
    said = trial.said()  # there was none before it
    if status != TOLD or newest.name not in said or "to restart this stage" not in said:
        return f"exit status {status}: {said}"
    shutil.rmtree(newest.parent)
    return trial.ends_as_expected()


def file_damaged(trial: Trial) -> str:
    """Damages a file of a finished run; it must be named, remade or without consequence."""
    shutil.copytree(trial.folder.parent / "unbroken" / "workdir", trial.workdir)
    shutil.rmtree(
        trial.workdir / trial.random.choice(["export", "predictions", "pretrain", "no"]),
        ignore_errors=True,
    )
    files = sorted(p for p in trial.workdir.rglob("*") if p.is_file() and p.name != ".lock")
    path = trial.random.choice(files)
    what = _harm(trial, path)
    status = trial.finish()
    if status == 0:
        if path.suffix == ".safetensors" and path.exists():  # it was not needed: is it refused?
            try:
                tensors.read_safetensors(path)
            except (safetensors.SafetensorError, ValueError):
                expected = trial.folder.parent / "unbroken" / path.relative_to(trial.folder)
                shutil.copy(expected, path)
        return trial.differs() and f"{what}: {trial.differs()}"
    if status == TOLD and (path.name in trial.said() or str(path.parent) in trial.said()):
        return ""
    return f"{what}: exit status {status}: {trial.said()}"


def disk_full(trial: Trial) -> str:
    """Limits the size of files; the run must report it, and resume once there is room."""
    largest = max(len(x.tobytes()) for x in trial.expected.values())
    status = trial.finish(file_bytes=trial.random.randrange(300, 4 * largest))
    if status not in (0, TOLD):
        return f"exit status {status}: {trial.said()}"
    if status == TOLD and "could not be written" not in trial.said():
        return trial.said()
    return trial.ends_as_expected()


def moved(trial: Trial) -> str:
    """Kills the run and moves its workdir."""
    trial.interrupt()
    elsewhere = trial.folder / "another place" / "run"
    elsewhere.parent.mkdir()
    if trial.workdir.exists():
        trial.workdir.rename(elsewhere)
    return trial.ends_as_expected(elsewhere)


def clock_turned_back(trial: Trial) -> str:
    """Kills the run; the clock of both runs goes backwards, by up to an hour a second."""
    speed = trial.random.choice([1, 60, 3600])
    trial.interrupt(clock=speed)
    status = trial.finish(clock=speed)
    return trial.differs() if status == 0 else f"exit status {status}: {trial.said()}"


def two_runs(trial: Trial) -> str:
    """Starts a second run on the workdir, which must be refused and not disturb the first."""
    first = trial.start()
    time.sleep(0.5)  # it locks the folder before anything else
    second = dataclasses.replace(trial, folder=trial.folder / "second")
    second.folder.mkdir()
    for name in ("data", "cache"):  # looked for beside a trial's folder
        (trial.folder / name).symlink_to(trial.folder.parent / name)
    status = second.finish(trial.workdir)
    first.join(TIMEOUT)
    if status != TOLD or f"in use by process {first.pid}" not in second.said():
        return f"exit status {status}: {second.said()}"
    return trial.differs() if first.exitcode == 0 else trial.said()


def many_epochs(trial: Trial) -> str:
    """Trains a thousand epochs of each stage; memory must not grow after the first hundred."""
    fields = {"pretrain__epochs": 1000, "finetune__epochs": 1000, "checkpoint__save_seconds": 5.0}
    process = trial.start(fields=fields)
    resident = {}  # bytes by lines of the log: a line an epoch
    statm, log = Path(f"/proc/{process.pid}/statm"), trial.workdir / "metrics.jsonl"
    while process.is_alive():
        with contextlib.suppress(OSError, IndexError):
            epochs = log.read_bytes().count(b"\n")
            resident[epochs] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        time.sleep(0.1)
    if process.exitcode:
        return trial.said()
    # Of each stage; building the second takes memory.
    grown = []
    for first in (0, 1000):
        sizes = [size for epoch, size in resident.items() if first + 100 <= epoch < first + 1000]
        half = len(sizes) // 2
        grown.append(np.mean(sizes[half:]) - np.mean(sizes[:half]))
    print("bytes grown by, second half of the epochs over the first:", *map(round, grown))
    return "" if max(grown) < 20e6 else f"grown by {grown} bytes"


FAULTS = [
    killed,
    killed_at_a_file_operation,
    preempted,
    checkpoint_damaged,
    file_damaged,
    disk_full,
    moved,
    clock_turned_back,
    two_runs,
    many_epochs,
]


def soak(
    faults: list[Callable[[Trial], str]], trials: int, seed: int, jobs: int
) -> list[dict[str, Any]]:
    """Runs the trials; returns a row for each fault."""
    _processes.set_forkserver_preload(["tests.tiny"])
    with tempfile.TemporaryDirectory(prefix="soak_") as name:
        root = Path(name)
        tiny.make_data(root / "data")
        unbroken = Trial(root / "unbroken", random.Random(seed), {}, 0, 0)
        unbroken.folder.mkdir()
        for _ in range(2):  # the first also compiles
            shutil.rmtree(unbroken.workdir, ignore_errors=True)
            counted = root / "operations"
            counted.unlink(missing_ok=True)
            process, started = unbroken.start(count=str(counted)), time.monotonic()
            process.join()
            if process.exitcode:
                raise SystemExit(unbroken.said())
        seconds, operations = time.monotonic() - started, counted.stat().st_size
        expected = outcome(unbroken.workdir)

        def attempt(fault: Callable[[Trial], str], number: int) -> str:
            folder = root / f"{fault.__name__}_{number}"
            folder.mkdir()
            draw = random.Random(f"{seed} {fault.__name__} {number}")
            try:
                return fault(Trial(folder, draw, expected, seconds, operations))
            except Exception as error:  # of the trial itself: lost as well
                return repr(error)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        rows = []
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for fault in faults:
                started = time.monotonic()
                numbers = range(trials)
                lost = [x[-2000:] for x in pool.map(lambda n, f=fault: attempt(f, n), numbers) if x]
                rows.append(
                    {
                        "fault": fault.__name__.replace("_", " "),
                        "promise": (fault.__doc__ or "").split(".")[0],
                        "trials": trials,
                        "losses": len(lost),
                        "minutes": (time.monotonic() - started) / 60,
                        "lost": lost,
                    }
                )
                print(f"{rows[-1]['fault']}: {trials} trials, {len(lost)} lost", *lost, sep="\n  ")
    return rows


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description="Random faults, and what is lost by them.")
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--faults", default=",".join(names), help="of them, joined by commas")
    parser.add_argument("--trials", type=int, default=20, help="of each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at a time")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    wanted = arguments.faults.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"--faults={','.join(sorted(unknown))}: there are {', '.join(names)}.")
    faults = [fault for fault in FAULTS if fault.__name__ in wanted]
    rows = soak(faults, arguments.trials, arguments.seed, arguments.jobs)
    table = rich.table.Table("fault", "trials", "losses", "minutes")
    for row in rows:
        table.add_row(row["fault"], str(row["trials"]), str(row["losses"]), f"{row['minutes']:.1f}")
    rich.console.Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(any(row["losses"] for row in rows))


if __name__ == "__main__":
    main()
