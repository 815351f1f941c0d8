"""SIGTERM, by which schedulers take a machine back, and Ctrl-C: save, then stop.

A signal ends whatever is under way, since every file is whole or not there. Only while training is
a checkpoint saved first; the steps under way are finished for that. Ctrl-C after it ends at once.

Of several hosts that train together, one may get the signal alone. It tells the others through
JAX's coordination service, so each ends what it is doing, and while they train they agree on the
step to save and stop at. A host that waits for one that has stopped cannot be interrupted: a thread
ends it.
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

from egmae_jax.core import console, sharding

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Keys of the coordination service.
_KEY = "egmae_jax/stop"  # the signal's number
_ENDED = "egmae_jax/ended"  # the folder of a key for each host that had to be ended
_POLL_SECONDS = 1.0  # between two looks at what other hosts say
_GRACE_SECONDS = 10.0  # after which a host that waits for others without training is ended
_PRIMARY_SECONDS = 20.0  # at most, that the first host waits for the others, which need its service
logger = logging.getLogger(__name__)


class Preempted(BaseException):
    """The run was asked to stop; its text says where the same command goes on.

    No handler of errors may catch it.

    Args:
        number: number of the signal, SIGINT or SIGTERM.

    Attributes:
        status: exit status, 128 and the signal's number, as shells have it.
    """

    def __init__(self, number: int):
        self.number = number
        self.status = 128 + number
        super().__init__(_message(number))

    def exit(self) -> NoReturn:
        """Says so, and ends the program with its status."""
        _announce(str(self))
        sys.exit(self.status)


@dataclasses.dataclass
class _State:
    """What this process knows of signals."""

    number: int = 0  # the first signal that came to this or another process; 0: none came
    deferred: bool = False  # the handler raises nothing
    protected: bool = False  # steps are being done that are to be saved
    is_announced: bool = False  # on the terminal, that the program was stopped
    place: str = "what the folder holds"  # where the same command goes on
    run: str = ""  # which of several runs of one command is under way
    writer: socket.socket | None = None  # wakes the thread


_state = _State()


def set_resume_point(place: str) -> None:
    """Sets where the same command would go on from, such as 'step 8 of 345 of pretrain'."""
    _state.place = place


def set_run_name(name: str) -> None:
    """Sets which of several runs of one command is under way, for the messages."""
    _state.run, _state.place = f", {name}", "what the folder holds"


def install() -> Callable[[], None]:
    """Makes SIGTERM and Ctrl-C raise Preempted in the main thread, or wait while it trains.

    Called again it takes the signals back from whoever took them since, as `jax.distributed` does.

    Returns:
        A function that undoes it.
    """
    handlers = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before, _state.writer = _state.writer, writer
    # The fd is written to by the system's handler, so the thread learns of a signal even while the
    # main thread is in a library that does not come back for minutes, such as a compiler.
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    if before is not None:
        before.close()  # which ends its thread
    watcher = _Watcher(reader, _state)
    thread = threading.Thread(target=watcher.run, name="signals", daemon=True)
    thread.start()

    def undo() -> None:
        signal.set_wakeup_fd(-1)
        writer.close()
        thread.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)

    return undo


@contextlib.contextmanager
def treat_lost_hosts_as_preemption() -> Iterator[None]:
    """On several hosts, takes an error after a signal for the end of another host.

    Raises:
        Preempted: such an error came; it is the cause.
    """
    try:
        yield
    except Exception as error:  # JAX and what it calls: the connection to a host is lost
        if _state.number and sharding.has_hosts():
            raise Preempted(_state.number) from error
        raise


def _on_signal(number: int, frame: FrameType | None) -> None:
    _state.number = _state.number or number
    if not _state.deferred:
        raise Preempted(_state.number)


class _Watcher:
    """What the thread does: it shares signals with other hosts and ends what cannot be interrupted.

    Args:
        reader: gets the number of each signal, in a byte; closed at the end.
        state: what this process knows of signals.
    """

    def __init__(self, reader: socket.socket, state: _State):
        self._reader, self._state = reader, state
        self._has_signal = False  # to this process
        self._is_shared = False  # with the other hosts
        self._has_warned = False
        self._blocked_since: float | None = None  # when the main thread could have ended

    def run(self) -> None:
        """Watches until the socket is closed."""
        while True:
            must_poll = sharding.has_hosts() or (self._state.number and not self._has_warned)
            timeout = _POLL_SECONDS if must_poll else None
            ready, _, _ = select.select([self._reader], [], [], timeout)
            received = self._reader.recv(4096) if ready else b""
            if ready and not received:
                return
            for number in filter(_SIGNALS.__contains__, received):
                self._take(number)
            if sharding.has_hosts():
                self._share()
                self._end_if_blocked()
            if not ready:  # a main thread that can stop has done so by now
                self._warn_once()

    def _take(self, number: int) -> None:
        self._state.number = self._state.number or number
        if self._has_signal and number == signal.SIGINT:
            _end()
        self._has_signal = True

    def _share(self) -> None:
        """Passes a signal of this process on, or raises here what came to another."""
        state = self._state
        if state.number and not self._is_shared:
            sharding.set_key(_KEY, str(state.number))
        elif not state.number and (number := sharding.get_key(_KEY)):
            state.number = int(number)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        self._is_shared = bool(state.number)

    def _end_if_blocked(self) -> None:
        """Ends a process that waits for hosts which have stopped, the first host last."""
        if not self._state.number or self._state.protected:
            self._blocked_since = None
            return
        now = time.monotonic()
        self._blocked_since = self._blocked_since or now
        late = now - self._blocked_since - _GRACE_SECONDS
        if late <= 0:
            return
        host, hosts = sharding.host()
        if host:
            _end(f"{_ENDED}/{host}")
        if sharding.count_keys(_ENDED) == hosts - 1 or late > _PRIMARY_SECONDS:
            _end()

    def _warn_once(self) -> None:
        state = self._state
        if not state.number or self._has_warned or state.is_announced:
            return
        self._has_warned = True
        logger.warning(
            "%s: stopping once %s; Ctrl-C%s ends at once, and the same command then goes on from "
            "%s%s",
            _name(state.number),
            "the steps under way are saved" if state.protected else "this is over",
            " again" if state.number == signal.SIGINT else "",
            state.place,
            state.run,
        )


def _end(key: str = "") -> None:
    """Ends the process as a kill would, whatever its main thread is doing; leaves a key first."""
    try:
        _announce(_message(_state.number))
        if key:
            sharding.set_key(key, "")
    finally:
        os._exit(128 + _state.number)


def _announce(message: str) -> None:
    if not _state.is_announced:
        _state.is_announced = True
        console.print_stopped(message)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _message(number: int) -> str:
    return f"by {_name(number)}: the same command goes on from {_state.place}{_state.run}."


class Deferral:
    """A block of training, in which signals wait: with Deferral() as deferral: ...

    It lets them wait from `begin` on. At its end a signal that came and was not heeded raises
    Preempted, on all hosts or none.
    """

    def __init__(self) -> None:
        self._has_begun = False

    def __enter__(self) -> "Deferral":
        return self

    def begin(self) -> None:
        """Makes signals wait from here on, as there are steps to save; all hosts call it."""
        if not self._has_begun:
            self._has_begun = _state.deferred = True
            sharding.wait_for_all("training has begun")  # one that has stopped never comes
            _state.protected = True

    @property
    def requested(self) -> int:
        """Number of the signal that came to this process or to another; 0: none."""
        return _state.number

    def stop(self, number: int) -> None:
        """Raises Preempted where `number`, which all hosts have agreed on, is a signal's."""
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
                self.stop(int(*sharding.agree(self.requested)))
        finally:
            _state.deferred = _state.protected = False
        if self._has_begun and kind is None and _state.number:  # after all have agreed
            raise Preempted(_state.number)
