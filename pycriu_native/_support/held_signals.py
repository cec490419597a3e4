"""Signals to a job that are held until there is a process to which they are passed on.

The handlers are installed before anything of the job is started. Processes in between are started
with these signals blocked, and unblock them after they have installed their own handlers: no signal
is lost, and none ends a process during its start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator

from .light_typing import Any
from .unpatched import UNTIL_SIGNALS, close, readable

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that take a last checkpoint and end the supervisor."""
CHECKPOINTING = signal.SIGUSR2
"""The signal that takes a checkpoint now."""

ALL = (*STOPPING, CHECKPOINTING)


class HeldSignals:
    """The signals that this process has received, in their order."""

    def __init__(self) -> None:
        self.stopped: int | None = None
        """The first one that ends the job."""
        self._received: deque[tuple[int, float]] = deque()
        self._child: int | None = None

    def install(self) -> dict[int, Any]:
        """Install the handlers, except for ignored signals; returns the previous handlers."""
        return {
            number: signal.signal(number, self._handle)
            for number in ALL
            if signal.getsignal(number) != signal.SIG_IGN
        }

    def _handle(self, number: int, _: object) -> None:
        if number in STOPPING and self.stopped is None:
            self.stopped = number
        self._received.append((number, time.monotonic()))
        self._pass_on()

    def _pass_on(self) -> None:
        # A handler may run in the middle of this, and pass on all of them.
        with contextlib.suppress(IndexError, ProcessLookupError):
            while self._child is not None:
                signal.pidfd_send_signal(self._child, self._received.popleft()[0])

    def take(self) -> Iterator[tuple[int, float]]:
        """Remove and return the received signals, each with its time on the monotonic clock."""
        with contextlib.suppress(IndexError):
            while True:
                yield self._received.popleft()

    @contextlib.contextmanager
    def passed_on(self, child: int) -> Iterator[int]:
        """Pass on the received and all later signals to a child; yields a pidfd of it."""
        pidfd = os.pidfd_open(child)
        try:
            self._child = pidfd
            self._pass_on()
            yield pidfd
        finally:
            self._child = None
            close(pidfd)


_held: HeldSignals | None = None


def are_held() -> bool:
    """Whether ``held`` or ``hold`` is active."""
    return _held is not None


def hold() -> None:
    """Hold the signals until the end of this process, which is about to run a job.

    Its exit code is that of the job, even if a signal arrives at the end.
    """
    global _held
    _held = HeldSignals()
    _held.install()


@contextlib.contextmanager
def held() -> Iterator[HeldSignals]:
    """Hold the signals meanwhile; nested in ``hold`` or ``held``, yields the outer object.

    No signals are received in other threads than the main thread.
    """
    global _held
    if threading.current_thread() is not threading.main_thread():
        yield HeldSignals()
        return
    if _held is not None:
        yield _held
        return
    _held = HeldSignals()
    before = _held.install()
    try:
        yield _held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        _held = None


def ignore() -> None:
    """Ignore the signals from now on: this process ends, and its exit code is fixed."""
    for number in ALL:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Block the signals in this thread: processes that it starts begin with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Undo ``blocked`` in a process that was started with it, when its handlers are installed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)


def until_ended(pidfd: int) -> None:
    """Wait until a process has ended; handlers of signals run meanwhile."""
    while not readable(pidfd, seconds=UNTIL_SIGNALS):
        pass
