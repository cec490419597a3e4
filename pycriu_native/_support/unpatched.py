"""Threads, locks and waits of the interpreter, also if gevent or eventlet have replaced them.

``monkey.patch_all()`` replaces threads by greenlets of the calling thread: a call that blocks the
signals of its thread would then block those of the caller. This module uses the original functions
of ``_thread``, from ``gevent.monkey.get_original`` and ``eventlet.patcher.original``; waits block
the thread, as in a C library.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from .light_typing import Any


def _loaded(module: str, name: str) -> Any:
    """A function of a module that is loaded; None while another thread loads it."""
    return getattr(sys.modules.get(module), name, None)


def original(module: str, name: str) -> Any:
    """An attribute of a module of the standard library, as it was before it was replaced."""
    if (of_gevent := _loaded("gevent.monkey", "get_original")) is not None:
        return of_gevent(module, name)
    if (of_eventlet := _loaded("eventlet.patcher", "original")) is not None:
        return getattr(of_eventlet(module), name)
    return getattr(__import__(module, fromlist=[name]), name)


Lock: Callable[[], Any] = original("_thread", "allocate_lock")
"""``threading.Lock``."""

RLock: Callable[[], Any] = original("_thread", "RLock")
"""``threading.RLock``: a signal's handler can take what its thread holds."""

get_ident: Callable[[], int] = original("_thread", "get_ident")
sleep: Callable[[float], None] = original("time", "sleep")

close: Callable[[int], None] = original("os", "close")
"""``os.close``. That of gevent waits for its loop, which some threads never run."""

read: Callable[[int, int], bytes] = original("os", "read")
write: Callable[[int, bytes], int] = original("os", "write")
"""``os.read`` and ``os.write``. Those of eventlet wait in a loop, which remains when their thread
ends."""


class closing:
    """Closes a descriptor at the end of a ``with`` statement."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        close(self._fd)


UNTIL_SIGNALS = 0.2
"""Seconds after which a wait for a condition is repeated. A signal that arrives just before CPython
starts to wait does not end the wait, and its handler runs only after it."""


LONGEST_POLL = 2**31 // 1000 - 1
"""Seconds that poll(2) can wait at most, 24 days."""


def poll() -> Any:
    """``select.poll()``; the module is loaded by the first call, where it is not built in."""
    return original("select", "poll")()


def readable(*fds: int, seconds: float | None = 0.0) -> bool:
    """Whether one of these descriptors can be read, or is at its end, within ``seconds``.

    None, and more than ``LONGEST_POLL``, are no limit.
    """
    waiting = poll()
    for fd in fds:
        waiting.register(fd, original("select", "POLLIN"))
    if seconds is None or seconds > LONGEST_POLL:
        return bool(waiting.poll(None))
    return bool(waiting.poll(max(0.0, seconds) * 1000))


_start: Callable[..., int] = original("_thread", "start_new_thread")
_native_id: Callable[[], int] = original("_thread", "get_native_id")


def threads_are_replaced() -> bool:
    """Whether gevent or eventlet has replaced threads by greenlets."""
    by_gevent = _loaded("gevent.monkey", "is_module_patched")
    by_eventlet = _loaded("eventlet.patcher", "is_monkey_patched")
    return (by_gevent is not None and bool(by_gevent("threading"))) or (
        by_eventlet is not None and bool(by_eventlet("thread"))
    )


_ending: deque[int] = deque(maxlen=16)
"""Numbers of threads of the kernel that have done their work, and may still exist."""

UNTIL_ENDED = 0.1
"""Seconds that a fork waits at most for one of them."""


def _wait_for_ending() -> None:
    """``os.fork`` warns of other threads from Python 3.12 on; it counts those of the kernel."""
    with suppress(IndexError):  # there is none, or another thread that forks has taken the last one
        while True:
            task, attempts = f"/proc/self/task/{_ending.pop()}", 100
            while attempts and os.path.exists(task):
                sleep(UNTIL_ENDED / 100)
                attempts -= 1


os.register_at_fork(before=_wait_for_ending)


def popen_needs_its_thread() -> bool:
    """Whether ``subprocess.Popen`` is that of gevent, which works in its loop's thread only."""
    by_gevent = _loaded("gevent.monkey", "is_module_patched")
    return by_gevent is not None and bool(by_gevent("subprocess"))


thread_names: dict[int, str] = {}
"""The name of each running :class:`RawThread`, by its ``get_ident()``."""

_joined_at_exit: set[RawThread] = set()


@atexit.register
def _join_all() -> None:
    for thread in list(_joined_at_exit):
        thread.join()


class RawThread:
    """The part of ``threading.Thread`` that this package uses, on a thread of the system.

    ``start`` does not wait until it runs. Without ``daemon`` the interpreter's exit waits for it,
    unless it does not wait for the thread that starts it.
    """

    def __init__(
        self,
        target: Callable[..., object],
        name: str,
        args: tuple[object, ...] = (),
        daemon: bool | None = None,
    ) -> None:
        self.ident: int | None = None
        self.name = name
        self._target = target
        self._args = args
        self._daemon = daemon
        self._once = [None]
        self._ended = Event()
        self._pid = 0

    def start(self) -> None:
        """Begin; ``RuntimeError`` where no thread can be started.

        It may be called again if it was interrupted.
        """
        self._pid = os.getpid()
        if self._daemon is None:
            self._daemon = _is_daemon()
        if not self._daemon:
            _joined_at_exit.add(self)
        try:
            self.ident = _start(self._body, ())
        except RuntimeError:
            _joined_at_exit.discard(self)
            raise

    def _body(self) -> None:
        try:
            self._once.pop()
        except IndexError:
            return  # an interrupted start had begun another thread
        self.ident = get_ident()
        thread_names[self.ident] = self.name
        try:
            _without_epoll()
            self._target(*self._args)
        finally:
            del self._target, self._args  # no reference cycles, as in threading.Thread
            thread_names.pop(self.ident, None)
            _joined_at_exit.discard(self)
            _ending.append(_native_id())
            self._ended.set()

    def is_alive(self) -> bool:
        """Whether it runs. A forked child has only the thread that forked."""
        return self.ident is not None and self._pid == os.getpid() and not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        if self.is_alive():
            self._ended.wait(timeout)


def _without_epoll() -> None:
    """Let the loops that eventlet creates on this thread have no descriptor.

    Its ``os.open`` creates one for each thread, which remains until garbage is collected.
    """
    is_patched = _loaded("eventlet.patcher", "is_monkey_patched")
    use_hub = _loaded("eventlet.hubs", "use_hub")
    if is_patched is not None and use_hub is not None and is_patched("os"):
        with suppress(Exception):  # the thread does its work in any case
            use_hub("poll")


def _is_daemon() -> bool:
    """Whether the interpreter's exit does not wait for this thread."""
    ident = get_ident()
    if any(each.ident == ident for each in list(_joined_at_exit)):
        return False
    import threading

    # ``current_thread`` would add an object for a thread of another library.
    this = next((each for each in threading.enumerate() if each.ident == ident), None)
    return this is None or this.daemon


def Thread(
    target: Callable[..., object],
    name: str,
    args: tuple[object, ...] = (),
    daemon: bool | None = None,
) -> Any:
    """A ``threading.Thread``, or a replacement with a real thread if that is a greenlet.

    Without ``daemon`` it is a daemon thread if the calling thread is one.
    """
    if threads_are_replaced():
        return RawThread(target, name, args, daemon)
    import threading

    return threading.Thread(target=target, name=name, args=args, daemon=daemon)


class Condition:
    """``threading.Condition`` on a lock that is not reentrant."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiters: list[Any] = []
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock until notified, or for at most so many seconds."""
        waiter = Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        self._lock.release()
        try:
            return bool(waiter.acquire(timeout=-1 if timeout is None else max(0.0, timeout)))
        finally:
            self._lock.acquire()
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Wait until ``predicate`` returns true."""
        while not predicate():
            self.wait(UNTIL_SIGNALS)

    def notify_all(self) -> None:
        """End each wait."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.release()


class Event:
    """``threading.Event``; a signal's handler that raises in it leaves no lock acquired."""

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[Any] = []

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """End each wait, also those to come."""
        self._set = True
        for waiter in list(self._waiters):
            with suppress(RuntimeError):  # another thread has set it at the same time
                waiter.release()

    def clear(self) -> None:
        """Reset it, so that waits block."""
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; whether it is."""
        waiter = Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        try:
            if timeout is not None:
                return self._set or bool(waiter.acquire(timeout=max(0.0, timeout)))
            while not self._set and not waiter.acquire(timeout=UNTIL_SIGNALS):
                pass
            return True
        finally:
            self._waiters.remove(waiter)
