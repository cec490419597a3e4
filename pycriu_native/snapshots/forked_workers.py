"""Workers that are forked from one fork server."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from .._support.forked_child import forgets
from .._support.unpatched import Lock
from .._transport.connection import Connection
from .._transport.forkserver import MAX_INHERITED, ForkServer, ForkServerUnavailableError
from .._transport.forwarding_via import ForwardingVia
from .._transport.spawn import DEFAULT_SPAWN_OPTIONS, RESTORING, SpawnOptions
from .._transport.worker import Worker, connect_worker
from .._transport.worker_factory import fingerprint, start_fork_server
from ..errors import ProgramError
from .uninterrupted import uninterrupted

PATIENCE = 30.0
"""Default time limit for the loading of CRIU, in seconds."""


class ForkedWorkers(ForwardingVia):
    """Workers for restores, each forked from a CRIU that has been loaded once. Owned.

    The fork server is started again if it has ended, or if the state that a worker inherits from
    the caller (user, namespaces, cgroup, limits) has changed. Calls other than restores use an
    ordinary worker.

    Synchronization: any number of threads may use it. A forked child starts its own fork server.
    """

    def __init__(self, worker: Worker, *, patience: float | None = None) -> None:
        """Start the fork server.

        Args:
            worker: the CRIU to use, without stdin.
            patience: seconds to wait until CRIU is loaded; None: 30.

        Raises:
            ProgramError: CRIU cannot be started or preloaded.
        """
        super().__init__(worker)
        self._worker = worker
        self._patience = PATIENCE if patience is None else patience
        self._lock = Lock()
        self._server: ForkServer | None = None
        self._like: object = None
        self._closed = False
        forgets(self)
        uninterrupted("share", self.renew, lambda _: self.close())

    @property
    def pid(self) -> int:
        """The pid of the fork server."""
        return 0 if self._server is None else self._server.pid

    def connect(
        self,
        keep: Sequence[int] = (),
        spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS,
        ready: ForkServer | None = None,
    ) -> Connection:
        """Connect to a worker of ``ready``, if given. Raises as :meth:`Worker.connect`."""
        if spawn_options != RESTORING:
            return self._worker.connect(keep, spawn_options)
        if len(keep) > MAX_INHERITED:
            why = f"at most {MAX_INHERITED} descriptors can be inherited, not {len(keep)}"
            return self._connect_unforked(keep, spawn_options, why)
        with contextlib.suppress(ForkServerUnavailableError):  # it was killed
            return _fork(ready or self._current(), keep)
        try:
            return _fork(self._current(), keep)
        except ForkServerUnavailableError as error:
            why = str(error)
        return self._connect_unforked(keep, spawn_options, why)

    def _connect_unforked(
        self, keep: Sequence[int], spawn_options: SpawnOptions, why: str
    ) -> Connection:
        """Connect to a worker if none can be forked."""
        return self._worker.connect(keep, spawn_options)

    def ready(self) -> ForkServer | None:
        """The fork server, if its workers equal one that this thread would start."""
        like = fingerprint(self._worker)
        with self._lock:
            return self._ready(like)

    def _ready(self, like: object) -> ForkServer | None:
        server = self._server
        return server if server is not None and server.is_open and self._like == like else None

    def renew(self) -> None:
        """Start the fork server again if it is not ready. Raises as the constructor."""
        try:
            self._current()
        except ForkServerUnavailableError as error:
            raise self._failure(str(error)) from None

    def _failure(self, why: str) -> Exception:
        """The exception if no worker can be forked."""
        return ProgramError(f"no worker can be forked: {why}")

    def _current(self) -> ForkServer:
        """A running fork server whose workers have the present inherited state.

        Raises ``ForkServerUnavailableError``, as starting a worker, and as :meth:`_prepare`.
        """
        like = fingerprint(self._worker)
        if like is None:
            raise ForkServerUnavailableError("/proc does not show what workers inherit")
        with self._lock:
            if self._closed:
                raise ForkServerUnavailableError("it is closed")
            if (ready := self._ready(like)) is not None:
                return ready
            self._end()
            self._server = start_fork_server(self._worker, RESTORING, like, patience=self._patience)
            if self._server is None:
                why = "another thread has changed what workers inherit"
                raise ForkServerUnavailableError(why)
            try:
                self._prepare(self._server)
            except BaseException:
                self._end()
                raise
            self._like = like
            return self._server

    def forget(self) -> None:
        """In a forked child: the fork server is that of the parent."""
        self._lock = Lock()
        self._server = None

    def _prepare(self, server: ForkServer) -> None:
        """Prepare a new fork server before its first worker."""

    def _end(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        """End the fork server; copies continue. A second call does nothing."""
        with self._lock:
            self._closed = True
            self._end()


def _fork(server: ForkServer, keep: Sequence[int]) -> Connection:
    return connect_worker(server.program, lambda ends: server.fork_worker(ends, keep))
