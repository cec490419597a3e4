"""ForkServerCache: the fork servers of a batch of calls.

Calls whose workers would have the same ``fingerprint`` share a fork server, from any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from .._support.closing import Closing
from .._support.unpatched import Lock
from ..errors import CriuError
from .base import Via
from .connection import Connection
from .forkserver import MAX_INHERITED, ForkServer, ForkServerUnavailableError
from .spawn import SpawnOptions
from .worker import Worker, connect_worker
from .worker_factory import fingerprint, start_fork_server


class ForkServerCache(Closing):
    """A fork server for each kind of worker. Owned. May be used from any thread."""

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
