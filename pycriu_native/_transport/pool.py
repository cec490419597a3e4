"""WorkerPool: workers that are started before the calls that use them::

    with WorkerPool(2) as pool:
        for pid, opts in jobs:
            dump(pid, opts, via=pool)

A call uses a ready worker only if a fresh one would be no different.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence

from .._native.ffi import native
from .._support.forked_child import forgets, hold_at_fork
from .._support.light_typing import TYPE_CHECKING, Any
from .._support.unpatched import Condition, Thread, get_ident, sleep
from ..errors import CriuError
from .connection import Connection
from .forwarding_via import ForwardingVia
from .process import ChildProcess
from .spawn import DEFAULT_SPAWN_OPTIONS, RESTORING, SAVING, SpawnOptions
from .worker import PATIENCE, Worker, WorkerConnection

if TYPE_CHECKING:
    from .worker_factory import WorkerFingerprint

LARGEST_POOL = 1024

DURING_A_CALL = 0.05
AFTER_A_CALL = 0.002
"""Seconds without a new worker after one was taken, and after one was retired: starting one would
take processor time and Python's lock from the call in progress."""

PAUSE = 1.0
"""Seconds between attempts while workers cannot be started."""


class _Stock:
    """The ready workers of one kind, and the thread that starts them. Owned by a ``WorkerPool``."""

    def __init__(self, size: int, worker: Worker, spawn_options: SpawnOptions) -> None:
        self.size = size
        self.worker = worker
        self.spawn_options = spawn_options
        self.idle: deque[tuple[WorkerConnection, WorkerFingerprint]] = deque()
        self._make_lock()
        self.closed = False
        self.thread: Any = None
        self.retired: deque[ChildProcess] = deque()
        """Workers whose call is over, to be reaped."""
        self.not_before = 0.0
        """Monotonic time before which no worker is started, in favour of the call in progress."""
        self.missed: WorkerFingerprint | None = None
        """The fingerprint that the last call needed, if no ready worker had it."""
        forgets(self)

    def _make_lock(self) -> None:
        self.changed = Condition()
        hold_at_fork(self.changed)

    def take(self) -> WorkerConnection | None:
        """A ready worker that is no different from a fresh one; None if there is none."""
        from .worker_factory import fingerprint  # the pool has loaded it

        here = fingerprint(self.worker) if self.idle else None
        dropped: list[WorkerConnection] = []
        try:
            with self.changed:
                with contextlib.suppress(RuntimeError):  # no thread can be started just now
                    self._run()
                while self.idle:
                    connection, inherited = self.idle[0]
                    if inherited != here:
                        self._miss(here, dropped)
                        return None
                    self.idle.popleft()
                    self.missed = None
                    if not connection.has_ended():
                        self.not_before = time.monotonic() + DURING_A_CALL
                        connection.retire = self.retire
                        return connection
                    dropped.append(connection)
                self.changed.notify_all()
                return None
        finally:
            for exited in dropped:
                exited.wait()

    def _miss(self, here: WorkerFingerprint | None, dropped: list[WorkerConnection]) -> None:
        """Restart the thread from here, if the last two calls needed this same fingerprint."""
        if here is not None and here == self.missed:
            dropped.extend(connection for connection, _ in self.idle)
            self.idle.clear()
            # Workers inherit the state of the thread that starts them, and that of its creator.
            self.thread = None
            with contextlib.suppress(RuntimeError):
                self._run()
            self.changed.notify_all()
        self.missed = here

    def _run(self) -> None:
        """Start the thread, if it does not run."""
        if self.thread is None and not self.closed:
            me: list[Any] = []  # the body may begin before its thread is known
            thread = Thread(_refill, "criu pool workers", (self, me), daemon=True)
            me.append(thread)
            self.thread = thread
            try:
                thread.start()
            except BaseException:
                self.thread = None
                raise

    def retire(self, process: ChildProcess) -> None:
        """Let the thread reap a worker whose call is over, and start the next one."""
        with self.changed:
            if self.thread is not None:
                self.retired.append(process)
                self.not_before = time.monotonic() + AFTER_A_CALL
                self.changed.notify_all()
                return
        process.wait(PATIENCE)  # the pool was closed meanwhile

    def reap_retired(self) -> None:
        """Reap the retired workers; each ends within a moment."""
        with contextlib.suppress(IndexError):  # all are reaped, perhaps by another thread
            while True:
                self.retired.popleft().wait(PATIENCE)

    def close(self) -> None:
        """End the thread and the ready workers."""
        with self.changed:
            self.closed = True
            thread, self.thread = self.thread, None
            remaining = [connection for connection, _ in self.idle]
            self.idle.clear()
            self.changed.notify_all()
        for connection in remaining:
            connection.close()  # all of them end at the same time
        for connection in remaining:
            connection.wait()
        if thread is not None and thread.ident != get_ident():
            thread.join()
        self.reap_retired()

    def forget(self) -> None:
        """In a forked child: drop the workers and the thread, which are the parent's."""
        self._make_lock()
        self.thread = None
        for connection, _ in self.idle:
            connection.detach()  # a copy of the socket here would keep them running
        self.idle.clear()
        while self.retired:
            self.retired.popleft().close()


def _refill(stock: _Stock, thread: list[Any]) -> None:
    """Keep ``stock.size`` workers ready; the body of the stock's thread."""
    from .worker_factory import WorkerFactory  # not needed by a star import

    me = thread[0]
    # A signal delivered to this thread would not interrupt the thread that waits for it.
    native.pn_block_signals()
    with WorkerFactory(stock.worker, stock.spawn_options) as factory:
        while True:
            with stock.changed:
                while stock.thread is me and not stock.retired and len(stock.idle) >= stock.size:
                    stock.changed.wait()
                while stock.thread is me and (remaining := stock.not_before - time.monotonic()) > 0:
                    stock.changed.wait(remaining)
                if stock.thread is not me:
                    return
            stock.reap_retired()
            if len(stock.idle) >= stock.size:
                continue
            try:
                made = factory.start()
            except (CriuError, OSError, MemoryError):  # a call will raise it
                with stock.changed:
                    if stock.thread is me:
                        stock.changed.wait(PAUSE)
                continue
            if made is None:
                continue
            with stock.changed:
                if stock.thread is me:
                    stock.idle.append(made)
                    continue
            made[0].wait()


def _close(*stocks: _Stock) -> None:
    for stock in stocks:
        stock.close()


class WorkerPool(ForwardingVia):
    """``size`` workers kept ready, each for one call; passed as ``via``, like a :class:`Worker`.

    From the first restore on, it also keeps ``size`` workers for restores: files that a dump
    creates are for its own user only, and a restore needs another umask.

    The workers are ``criu swrk`` processes, children of this one, that wait on a socket. A call
    takes one, and the pool replaces it in the background; calls beyond ``size`` at the same time
    start their own. One more such process is the fork server: it loads CRIU once, and forks each
    worker before CRIU's ``main()`` begins, at a quarter of the cost. (A program that LD_PRELOAD
    does not work with, such as one with file capabilities, is started for each worker instead.)

    The call starts a fresh worker where a ready one would be different:

    * the call passes descriptors or standard input: ``inherit_fds``, ``PageServer(fd=...)``,
      ``shell_job``, ``exec_cmd``;
    * the caller dumps itself, or a tree that contains it;
    * since the ready workers were started, one of these has changed for the calling thread:
      namespaces, root, directory, user, groups, capabilities, security label, system call filter,
      cgroup, OOM score, rlimits, umask, priority, processors, session, terminal, the ``criu``
      program or CRIU's configuration files. After two such calls with the same state the pool
      replaces its workers by ones with that state.

    ``program``, ``env`` and ``allow_untrusted`` are those of :class:`Worker`. Owned: use it in a
    ``with`` statement, or close it, which ends the ready workers. If this process ends without
    that, SIGKILL included, the workers' sockets close and the workers end. ``os.wait()`` also
    returns for these children.

    Synchronization: calls on any number of threads may share it. A forked child starts workers of
    its own.
    """

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
        # Not needed by a star import. Not imported on the pool's thread: a child that is forked
        # during the import could never import it, and would wait forever when it closes the pool.
        from . import worker_factory  # noqa: F401

        own = dict(env) if isinstance(env, Mapping) else {} if env is None else env
        self._worker = Worker(program=program, env=own, allow_untrusted=allow_untrusted)
        super().__init__(self._worker)
        self.identity()  # raises if there is no such program
        self._stock = _Stock(size, self._worker, SAVING)
        self._restoring = _Stock(size, self._worker, RESTORING)
        """Filled from the first restore on."""
        self._finish = weakref.finalize(self, _close, self._stock, self._restoring)
        with self._stock.changed:
            self._stock._run()

    @property
    def worker(self) -> Worker:
        """The :class:`Worker` that the pool starts."""
        return self._worker

    @property
    def env(self) -> Mapping[str, str]:
        """Variables added to the workers' environment."""
        return self._worker.env

    def __repr__(self) -> str:
        state = "closed" if self._stock.closed else f"{self.idle} of {self._stock.size} ready"
        return f"<WorkerPool: {state}>"

    @property
    def idle(self) -> int:
        """The number of workers that are ready now."""
        return len(self._stock.idle)

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Wait until all workers are ready, for at most ``timeout`` seconds; whether they are."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.idle < self._stock.size and not self._stock.closed:
            if until is not None and time.monotonic() > until:
                return False
            sleep(0.001)
        return not self._stock.closed

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """A ready worker where that makes no difference, else a fresh one.

        ``ValueError`` if the pool is closed; else raises as :meth:`Worker.connect`.
        """
        if self._stock.closed:
            raise ValueError("this pool of workers is closed")
        stock = next(
            (s for s in (self._stock, self._restoring) if s.spawn_options == spawn_options), None
        )
        ready = None if keep or stock is None else stock.take()
        return self._worker.connect(keep, spawn_options) if ready is None else ready

    def close(self) -> None:
        """End the ready workers; calls in progress keep theirs. May be called again."""
        self._finish()
