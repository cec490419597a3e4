"""WorkerFactory: starts the workers of a pool, with a fingerprint of the state they inherited.

It uses a fork server where the program supports that (``forkserver.py``); else it starts each
worker on its own.
"""

from __future__ import annotations

import errno

from .._support.closing import Closing
from .forkserver import NO_INPUT, ForkServer, ForkServerUnavailableError
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
    """Starts workers, all on the same thread. Owned."""

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
