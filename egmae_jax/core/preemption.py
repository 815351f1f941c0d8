"""Handling of SIGTERM, which schedulers send before they take a machine back, and of Ctrl-C.

Outside of training, a signal stops the program immediately, since files are written atomically.
During training, the current dispatch of steps is finished and a checkpoint is saved first; a
further Ctrl-C stops the program without saving.

If several hosts train together, perhaps only one of them gets the signal. It informs the others
through JAX's coordination service: outside of training each stops immediately, and during training
all agree on the step at which they save and stop. The main thread of a host cannot be interrupted
while it waits for a host that has stopped, so another thread ends the process.
"""

import contextlib
import dataclasses
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn

from egmae_jax.core import console, hosts

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Keys of the coordination service.
_KEY = "egmae_jax/stop"  # number of the signal
_ENDED = "egmae_jax/ended"  # folder with one key for each host that its thread has ended
_POLL_SECONDS = 1.0  # interval at which a host looks for the signals of others
_GRACE_SECONDS = 10.0  # time that the main thread has to stop, unless it trains
_PRIMARY_SECONDS = 20.0  # longest further time that host 0, which runs the service, waits
logger = logging.getLogger(__name__)


class Preempted(BaseException):
    """A signal has stopped the run; the message says from where the same command resumes.

    It derives from BaseException, so `except Exception` does not catch it.

    Args:
        number: number of the signal, SIGINT or SIGTERM.

    Attributes:
        status: exit status of the program, 128 + `number`, as shells report it.
    """

    def __init__(self, number: int):
        self.number = number
        self.status = 128 + number
        super().__init__(_message(number))

    def exit(self) -> NoReturn:
        """Prints the message and ends the program with `status`.

        A program of one host ends at once: while XLA still compiles in threads of its own, Python's
        cleanup can crash, which would replace the status.
        """
        _announce(str(self))
        if _state.writer is None or hosts.is_multihost():
            sys.exit(self.status)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.status)


@dataclasses.dataclass
class _State:
    """State of the signal handling in this process."""

    number: int = 0  # number of the first signal to any process of the run; 0 before it
    is_deferred: bool = False  # whether signals wait for `Deferral` instead of raising
    is_training: bool = False  # whether there are steps to save, so that the thread must not end it
    is_announced: bool = False  # whether the terminal shows that the program was stopped
    resume_point: str = "the saved files"  # from where the same command resumes
    run: str = ""  # ', ' and the name of the current run, for commands of several runs
    writer: socket.socket | None = None  # wakes the thread


_state = _State()


def set_resume_point(resume_point: str) -> None:
    """Sets from where the same command would resume, such as 'step 8 of 345 of pretrain'."""
    _state.resume_point = resume_point


def set_run_name(name: str) -> None:
    """Sets the name of the current run in messages, for commands of several runs."""
    _state.run, _state.resume_point = f", {name}", _State.resume_point


def install() -> Callable[[], None]:
    """Makes SIGTERM and Ctrl-C raise `Preempted` in the main thread; see `Deferral` for training.

    Call it again after `jax.distributed.initialize`, which installs its own handlers.

    Returns:
        A function that restores the previous handlers.
    """
    handlers = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before, _state.writer = _state.writer, writer
    # Python's C handler writes to this socket, so the thread learns of a signal even while the main
    # thread is in a library for minutes, such as the compiler.
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    if before is not None:
        before.close()  # ends the previous thread
    watcher = _Watcher(reader, _state)
    thread = threading.Thread(target=watcher.run, name="signals", daemon=True)
    thread.start()

    def undo() -> None:
        signal.set_wakeup_fd(-1)
        writer.close()
        _state.writer = None
        thread.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)

    return undo


@contextlib.contextmanager
def treat_lost_hosts_as_preemption() -> Iterator[None]:
    """On several hosts, treats any error after a signal as the loss of another host.

    Raises:
        Preempted: such an error was raised; it is the `__cause__`.
    """
    try:
        yield
    except Exception as error:  # JAX has no single type for a lost connection
        if _state.number and hosts.is_multihost():
            raise Preempted(_state.number) from error
        raise


def _on_signal(number: int, frame: FrameType | None) -> None:
    _state.number = _state.number or number
    if not _state.is_deferred:
        raise Preempted(_state.number)


class _Watcher:
    """Work of the thread: shares signals with other hosts and ends a process that cannot stop.

    Args:
        reader: socket that receives the number of each signal as a byte.
        state: state of the signal handling.
    """

    def __init__(self, reader: socket.socket, state: _State):
        self._reader, self._state = reader, state
        self._has_signal = False  # whether this process itself got a signal
        self._is_shared = False  # whether the other hosts know of the signal
        self._has_warned = False
        self._blocked_since: float | None = None  # since when the main thread should have stopped

    def run(self) -> None:
        """Handles signals until the other end of the socket is closed."""
        while True:
            must_poll = hosts.is_multihost() or (self._state.number and not self._has_warned)
            timeout = _POLL_SECONDS if must_poll else None
            ready, _, _ = select.select([self._reader], [], [], timeout)
            received = self._reader.recv(4096) if ready else b""
            if ready and not received:
                return
            for number in filter(_SIGNALS.__contains__, received):
                self._take(number)
            if hosts.is_multihost():
                self._share()
                self._end_if_blocked()
            if not ready:  # a poll interval later, so the main thread has had time to stop
                self._warn_once()

    def _take(self, number: int) -> None:
        self._state.number = self._state.number or number
        if self._has_signal and number == signal.SIGINT:
            _end()
        self._has_signal = True

    def _share(self) -> None:
        """Informs the other hosts of this host's signal, or raises another host's signal here."""
        state = self._state
        if state.number and not self._is_shared:
            hosts.set_key(_KEY, str(state.number))
        elif not state.number and (number := hosts.get_key(_KEY)):
            state.number = int(number)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        self._is_shared = bool(state.number)

    def _end_if_blocked(self) -> None:
        """Ends this process if it does not stop; host 0, which runs the service, ends last."""
        if not self._state.number or self._state.is_training:
            self._blocked_since = None
            return
        now = time.monotonic()
        self._blocked_since = self._blocked_since or now
        overdue = now - self._blocked_since - _GRACE_SECONDS
        if overdue <= 0:
            return
        host, num_hosts = hosts.index_and_count()
        if host:
            _end(f"{_ENDED}/{host}")
        if hosts.count_keys(_ENDED) == num_hosts - 1 or overdue > _PRIMARY_SECONDS:
            _end()

    def _warn_once(self) -> None:
        state = self._state
        if not state.number or self._has_warned or state.is_announced:
            return
        self._has_warned = True
        logger.warning(
            "%s: stopping as soon as %s. Press Ctrl-C%s to stop now; the same command then resumes "
            "from %s%s",
            _name(state.number),
            "the current steps are saved" if state.is_training else "the current task allows it",
            " again" if state.number == signal.SIGINT else "",
            state.resume_point,
            state.run,
        )


def _end(key: str = "") -> None:
    """Ends the process immediately, without cleanup, whatever its main thread is doing.

    Args:
        key: key to set in the coordination service before; '' sets none.
    """
    try:
        _announce(_message(_state.number))
        if key:
            hosts.set_key(key, "")
    finally:
        os._exit(128 + _state.number)


def _announce(message: str) -> None:
    if not _state.is_announced:
        _state.is_announced = True
        console.print_stopped(message)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _message(number: int) -> str:
    return f"by {_name(number)}: the same command resumes from {_state.resume_point}{_state.run}."


class Deferral:
    """Context manager that defers signals during training: `with Deferral() as deferral: ...`.

    Signals are deferred from the call of `begin` on. The training loop checks `requested` and calls
    `stop`. A signal that is still pending at the end of the block raises `Preempted`, either on all
    hosts or on none.
    """

    def __init__(self) -> None:
        self._has_begun = False

    def __enter__(self) -> "Deferral":
        return self

    def begin(self) -> None:
        """Defers signals from now on, since there will be steps to save; all hosts must call it."""
        if not self._has_begun:
            self._has_begun = _state.is_deferred = True
            # Waits forever if a host has stopped; the thread then ends this process.
            hosts.wait_for_all("training has begun")
            _state.is_training = True

    @property
    def requested(self) -> int:
        """Number of the first signal to any process of the run; 0 before it."""
        return _state.number

    def stop(self, number: int) -> None:
        """Raises `Preempted` unless `number`, on which all hosts have agreed, is 0."""
        if number:
            _state.number = number
            raise Preempted(number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._has_begun and kind is None:
                self.stop(int(*hosts.agree(self.requested)))
        finally:
            _state.is_deferred = _state.is_training = False
        if self._has_begun and kind is None and _state.number:  # it came after they had agreed
            raise Preempted(_state.number)
