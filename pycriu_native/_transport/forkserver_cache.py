"""Workers for the calls of a batch, grown from seeds that last as long as it does.

Which seed a worker comes from, what the worker would be like decides (``fingerprint``): calls from
one thread, or from threads alike, share one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from .._support.closing import Closing
from .._support.unpatched import Lock
from ..errors import CriuError
from .base import Via
from .connection import Connection
from .forkserver import MOST_INHERITED, ForkServer, ForkServerUnavailableError
from .spawn import SpawnOptions
from .worker import Worker, connect_worker
from .worker_factory import fingerprint, start_fork_server


class ForkServerCache(Closing):
    """A seed for each kind of worker that was asked for. Owned. Any thread may ask."""

    def __init__(self) -> None:
        self._sowing = Lock()
        self._seeds: dict[object, ForkServer | None] = {}

    def connect(self, via: Via, keep: Sequence[int], spawn_options: SpawnOptions) -> Connection:
        """What ``via.connect`` gives; from a seed where that makes no difference."""
        # A Worker alone is known to do no more than to start one.
        if (
            type(via) is Worker
            and via.stdin is None
            and not spawn_options.outside
            and len(keep) <= MOST_INHERITED
        ):
            seed = self._fork_server(via, spawn_options)
            if seed is not None:
                with contextlib.suppress(ForkServerUnavailableError):
                    return connect_worker(via.name(), lambda ends: seed.fork_worker(ends, keep))
        return via.connect(keep, spawn_options)

    def _fork_server(self, worker: Worker, spawn_options: SpawnOptions) -> ForkServer | None:
        like = fingerprint(worker)
        if like is None:
            return None
        kind = (like, tuple(worker.env.items()), spawn_options)
        with self._sowing:
            if kind not in self._seeds:
                self._seeds[kind] = None
                with contextlib.suppress(
                    ForkServerUnavailableError, CriuError, OSError
                ):  # via.connect will tell
                    self._seeds[kind] = start_fork_server(worker, spawn_options, like)
            return self._seeds[kind]

    def close(self) -> None:
        """End the seeds; the workers stay."""
        for seed in self._seeds.values():
            if seed is not None:
                seed.close()
