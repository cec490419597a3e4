"""The workers of pools and batches, with a fingerprint of the state they inherited.

They are forked from a fork server where the program supports that (``forkserver.py``); else each is
started on its own.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence

from .._support.closing import Closing
from .._support.unpatched import Lock
from ..errors import CriuError
from .base import Via
from .connection import Connection
from .forkserver import MAX_INHERITED, NO_INPUT, ForkServer, ForkServerUnavailableError
from .inherited_state import inherited_state
from .program import find_program, on_disk
from .spawn import SpawnOptions
from .worker import Worker, WorkerConnection, connect_worker, start_worker

WorkerFingerprint = tuple[object, ...]
"""The program of a worker, and the state inherited from the thread that starts it."""


def fingerprint(worker: Worker) -> WorkerFingerprint | None:
    """The fingerprint of a worker started now by this thread; None if /proc does not show it."""
    result = inherited_state(worker.env)
    if result is None:
        return None
    # Each call and each start checks whether other users could change the program.
    return on_disk(find_program(worker.program, allow_untrusted=True)), result


def start_fork_server(
    worker: Worker,
    spawn_options: SpawnOptions,
    like: WorkerFingerprint,
    *,
    patience: float | None = None,
) -> ForkServer | None:
    """Start a fork server. Returns None if the fingerprint is not ``like`` any more.

    Raises ``ForkServerUnavailableError``, and what starting a worker raises.
    """
    server = ForkServer(worker.name(), worker.env, spawn_options, patience=patience)
    if fingerprint(worker) == like:
        return server
    server.close()
    return None


class WorkerFactory(Closing):
    """Starts the workers of a pool, all on the same thread. Owned."""

    def __init__(self, worker: Worker, spawn_options: SpawnOptions) -> None:
        self._worker = worker
        self._spawn_options = spawn_options
        self._fork_server: ForkServer | None = None
        self._unavailable = False
        self._known: WorkerFingerprint | None = None
        """The fingerprint of the fork server, or of the last worker started without one."""

    def start(self) -> tuple[WorkerConnection, WorkerFingerprint] | None:
        """Start a worker. Returns None if the inherited state changed meanwhile; retry.

        Raises what starting a worker raises, and ``OSError`` if /proc does not show the state.
        """
        program = self._worker.name()
        if self._fork_server is None and not self._unavailable:
            self._known = self._fingerprint()
            try:
                self._fork_server = start_fork_server(
                    self._worker, self._spawn_options, self._known
                )
            except ForkServerUnavailableError:
                self._unavailable = True
        if self._fork_server is not None and self._known is not None:
            try:
                return connect_worker(program, self._fork_server.fork_worker), self._known
            except ForkServerUnavailableError:
                # It may have been killed: start this worker without it, the next with a new one.
                self._fork_server = self._known = None
        before = self._known or self._fingerprint()
        connection = start_worker(
            program, self._worker.env, NO_INPUT, spawn_options=self._spawn_options
        )
        # The same state before and after the start is the state that the worker inherited.
        self._known = fingerprint(self._worker)
        if self._known == before:
            return connection, before
        connection.wait()
        return None

    def _fingerprint(self) -> WorkerFingerprint:
        result = fingerprint(self._worker)
        if result is None:
            raise FileNotFoundError(
                errno.ENOENT, "the state that workers inherit is not shown", "/proc"
            )
        return result

    def close(self) -> None:
        """End the fork server; the workers stay."""
        if self._fork_server is not None:
            self._fork_server.close()


class ForkServerCache(Closing):
    """A fork server for each kind of worker of a batch of calls. Owned.

    Calls whose workers would have the same fingerprint share one, from any thread.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._servers: dict[object, ForkServer | None] = {}

    def connect(self, via: Via, keep: Sequence[int], spawn_options: SpawnOptions) -> Connection:
        """Connect as ``via.connect`` does, with a forked worker where that makes no difference."""
        # Other classes, subclasses included, may do more than to start a worker.
        if (
            type(via) is Worker
            and via.stdin is None
            and not spawn_options.detached
            and len(keep) <= MAX_INHERITED
        ):
            server = self._fork_server(via, spawn_options)
            if server is not None:
                with contextlib.suppress(ForkServerUnavailableError):
                    return connect_worker(via.name(), lambda ends: server.fork_worker(ends, keep))
        return via.connect(keep, spawn_options)

    def _fork_server(self, worker: Worker, spawn_options: SpawnOptions) -> ForkServer | None:
        like = fingerprint(worker)
        if like is None:
            return None
        kind = (like, tuple(worker.env.items()), spawn_options)
        with self._lock:
            if kind not in self._servers:
                self._servers[kind] = None
                # via.connect raises the error.
                with contextlib.suppress(ForkServerUnavailableError, CriuError, OSError):
                    self._servers[kind] = start_fork_server(worker, spawn_options, like)
            return self._servers[kind]

    def close(self) -> None:
        """End the fork servers; the workers stay."""
        for server in self._servers.values():
            if server is not None:
                server.close()
