"""Workers that are started ahead of the calls that use them.

Starting ``criu`` takes some milliseconds, most of them the loader's. ``WorkerPool`` has it loaded
once (``forkserver.py``), keeps a few workers that wait for a request, and forks the next ones while
calls are busy with other things::

    with WorkerPool(2) as warm:
        for pid, opts in jobs:
            dump(pid, opts, via=warm)

A warm worker is used for a call only if a fresh one would be no different: the one rule is
``WorkerPool.connect``. It ends when its socket does, so it does not outlive us, however we end.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from .._native.ffi import native
from .._support.closing import Closing
from .._support.light_typing import Any, ClassVar
from .._support.unpatched import Condition, Thread, get_ident, sleep
from ..errors import CriuError, Problem
from .connection import Connection
from .process import ChildProcess
from .spawn import DEFAULT_SPAWN_OPTIONS, RESTORING, SAVING, SpawnOptions
from .worker import PATIENCE, Worker, WorkerConnection
from .worker_factory import WorkerFactory, WorkerFingerprint, fingerprint

__all__ = ["WorkerPool"]

LARGEST_POOL = 1024

DURING_A_CALL = 0.05
AFTER_A_CALL = 0.002
"""Seconds for which no worker is started after one was taken, and after one was given back: the
start would take the processor, and Python's lock, from the call that goes on."""

PAUSE = 1.0
"""Seconds between tries while workers cannot be started."""


class _Idle:
    """A worker that waits, and what it has taken over from the thread that started it."""

    def __init__(self, line: WorkerConnection, born: WorkerFingerprint) -> None:
        self.line = line
        self.born = born


class _Stock:
    """Idle workers of one kind, and the thread that starts them; it outlives no ``WorkerPool``."""

    def __init__(self, size: int, worker: Worker, spawn_options: SpawnOptions) -> None:
        self.size = size
        self.worker = worker
        self.spawn_options = spawn_options
        self.idle: deque[_Idle] = deque()
        self.turn = Condition()
        self.closed = False
        self.thread: Any = None
        self.retired: deque[ChildProcess] = deque()
        """Workers that have served their call, and are to be reaped."""
        self.not_before = 0.0
        """No worker is started before this time: the call that took one would wait for it."""
        self.missed: WorkerFingerprint | None = None
        """Where the last call came from that found no worker of its surroundings."""

    def take(self) -> WorkerConnection | None:
        """A worker that is no different from one that would be started now; None: there is none."""
        if not self.idle:
            with self.turn:
                with contextlib.suppress(RuntimeError):
                    self._run()
                self.turn.notify_all()
            return None
        here = fingerprint(self.worker)
        dropped: list[_Idle] = []
        try:
            with self.turn:
                with contextlib.suppress(RuntimeError):  # no thread can be started just now
                    self._run()
                while self.idle:
                    result = self.idle[0]
                    if result.born != here:
                        self._miss(here, dropped)
                        return None
                    self.idle.popleft()
                    self.missed = None
                    if not result.line.has_ended():
                        self.not_before = time.monotonic() + DURING_A_CALL
                        result.line.later = self.retire
                        return result.line
                    dropped.append(result)
                self.turn.notify_all()
                return None
        finally:
            for exited in dropped:
                exited.line.wait()

    def _miss(self, here: WorkerFingerprint | None, dropped: list[_Idle]) -> None:
        """Move to the surroundings of this thread, if two calls in a row come from there."""
        if here is not None and here == self.missed:
            dropped.extend(self.idle)
            self.idle.clear()
            # What a thread starts has the thread's surroundings: the next ones are born here.
            self.thread = None
            with contextlib.suppress(RuntimeError):
                self._run()
            self.turn.notify_all()
        self.missed = here

    def _run(self) -> None:
        """Have a thread that starts workers."""
        if self.thread is None and not self.closed:
            me: list[Any] = []  # the body may begin before its thread is known
            thread = Thread(_refill, "criu warm workers", (self, me), daemon=True)
            me.append(thread)
            self.thread = thread
            try:
                thread.start()
            except BaseException:
                self.thread = None
                raise

    def retire(self, process: ChildProcess) -> None:
        """Have the thread reap a worker that has served its call, and start the next one."""
        with self.turn:
            if self.thread is not None:
                self.retired.append(process)
                self.not_before = time.monotonic() + AFTER_A_CALL
                self.turn.notify_all()
                return
        process.wait(PATIENCE)  # the pool was closed meanwhile

    def reap_retired(self) -> None:
        """Wait for the end of those that have served: a moment each."""
        while self.retired:
            try:
                process = self.retired.popleft()
            except IndexError:
                return  # another thread was faster
            process.wait(PATIENCE)

    def close(self) -> None:
        """End the thread, and the workers that wait."""
        with self.turn:
            self.closed = True
            thread, self.thread = self.thread, None
            remaining = list(self.idle)
            self.idle.clear()
            self.turn.notify_all()
        for idle in remaining:
            idle.line.close()  # all of them end at the same time
        for idle in remaining:
            idle.line.wait()
        if thread is not None and thread.ident != get_ident():
            thread.join()
        self.reap_retired()

    def forget(self) -> None:
        """In a forked child: the workers are the parent's, and so is the thread."""
        self.turn = Condition()
        self.thread = None
        for idle in self.idle:
            idle.line.detach()  # as long as we held the socket too they would not see its end
        self.idle.clear()
        while self.retired:
            self.retired.popleft().close()


def _refill(stock: _Stock, thread: list[Any]) -> None:
    """Keep as many workers as were asked for; the body of the stock's thread."""
    me = thread[0]
    # A signal that this thread took would not interrupt the one that waits for it.
    native.pn_block_signals()
    with WorkerFactory(stock.worker, stock.spawn_options) as nursery:
        while True:
            with stock.turn:
                while stock.thread is me and not stock.retired and len(stock.idle) >= stock.size:
                    stock.turn.wait()
                while stock.thread is me and (remaining := stock.not_before - time.monotonic()) > 0:
                    stock.turn.wait(remaining)
                if stock.thread is not me:
                    return
            stock.reap_retired()
            if len(stock.idle) >= stock.size:
                continue
            try:
                made = nursery.start()
            except (CriuError, OSError, MemoryError):  # a call will tell
                with stock.turn:
                    if stock.thread is me:
                        stock.turn.wait(PAUSE)
                continue
            if made is None:
                continue
            with stock.turn:
                if stock.thread is me:
                    stock.idle.append(_Idle(*made))
                    continue
            made[0].wait()


_stocks: weakref.WeakSet[_Stock] = weakref.WeakSet()


def _before_fork() -> None:
    for stock in list(_stocks):
        stock.turn.acquire()


def _after_fork_in_parent() -> None:
    for stock in list(_stocks):
        stock.turn.release()


def _after_fork_in_child() -> None:
    for stock in list(_stocks):
        stock.forget()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def _close(*stocks: _Stock) -> None:
    for stock in stocks:
        stock.close()


class WorkerPool(Closing):
    """``size`` workers kept ready, each for one call; used as ``via``, like a :class:`Worker`.

    From the first restore on there are as many for restores: what a dump creates is for its own
    user only, which a restore could not do.

    They are processes ``criu swrk``, children of this one, idle on a socket. A call takes one
    and it is replaced in the background, so calls beyond ``size`` at the same moment start their
    own. One more such process is their seed: CRIU is loaded once, in there, and each worker is
    forked from it before CRIU's ``main()`` begins, at a quarter of the cost. (Programs that
    cannot be preloaded into, such as one with file capabilities, are started each on its own.)

    A fresh worker is started, without a word, where a warm one would be different:

    * the call hands over descriptors, or standard input: ``inherit_fds``, ``PageServer(fd=...)``,
      ``shell_job``, ``exec_cmd``;
    * the caller dumps itself, or a tree that it is in;
    * this thread's namespaces, root, directory, user, groups, capabilities, security label,
      system call filter, cgroup, OOM score, rlimits, umask, priority, processors, session or
      terminal, the ``criu`` program or CRIU's configuration files are others than when the warm
      ones were started. After two such calls from the same surroundings the pool moves there.

    ``program``, ``env`` and ``allow_untrusted`` are those of :class:`Worker`. Owned: use it in a
    ``with`` statement, or close it, which ends the idle workers. When the process ends in any
    other way, SIGKILL included, their sockets close and they end by themselves. Who waits for
    any child at all (``os.wait()``) waits for them too.

    Synchronization: calls on any number of threads may share it. In a forked child it starts
    with workers of the child's own.
    """

    ours: ClassVar[bool] = True

    def __init__(
        self,
        size: int = 2,
        *,
        program: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        allow_untrusted: bool = False,
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_POOL:
            raise ValueError(f"size={size!r}: a whole number from 1 to {LARGEST_POOL} is accepted")
        self._worker = Worker(
            program=program, env={} if env is None else dict(env), allow_untrusted=allow_untrusted
        )
        self._worker.identity()  # there is such a program
        self._stock = _Stock(size, self._worker, SAVING)
        self._restoring = _Stock(size, self._worker, RESTORING)
        """Those for restores, from the first one on."""
        self._finish = weakref.finalize(self, _close, self._stock, self._restoring)
        _stocks.update((self._stock, self._restoring))
        with self._stock.turn:
            self._stock._run()

    @property
    def worker(self) -> Worker:
        """What one of them is like."""
        return self._worker

    @property
    def allow_untrusted(self) -> bool:
        """Whether to use what other users could change: see :class:`Worker`."""
        return self._worker.allow_untrusted

    @property
    def env(self) -> Mapping[str, str]:
        """What is added to the workers' environment."""
        return self._worker.env

    def __repr__(self) -> str:
        state = "closed" if self._stock.closed else f"{self.idle} of {self._stock.size} ready"
        return f"<WorkerPool: {state}>"

    @property
    def idle(self) -> int:
        """How many workers are ready now."""
        return len(self._stock.idle)

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Wait, for ``timeout`` seconds at most, until all are ready; whether they are."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.idle < self._stock.size and not self._stock.closed:
            if until is not None and time.monotonic() > until:
                return False
            sleep(0.001)
        return not self._stock.closed

    def identity(self) -> tuple[object, ...]:
        """Which program this is, as it is on disk now."""
        return self._worker.identity()

    def name(self) -> str:
        """What to call it in messages."""
        return self._worker.name()

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """A worker of our own can do everything."""
        return self._worker.refuses(inherits=inherits, sibling=sibling)

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """A warm worker where that makes no difference, else a fresh one.

        ``ValueError`` once it is closed; else raises as :meth:`Worker.connect`.
        """
        if self._stock.closed:
            raise ValueError("these warm workers are closed")
        stock = next(
            (s for s in (self._stock, self._restoring) if s.spawn_options == spawn_options), None
        )
        warm = None if keep or stock is None else stock.take()
        return self._worker.connect(keep, spawn_options) if warm is None else warm

    def close(self) -> None:
        """End the workers that wait; calls under way keep theirs. A second time does nothing."""
        self._finish()
