"""A worker that is in a cgroup before it restores: all memory of the copy is charged to it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from .._transport.base import Via
from .._transport.connection import Connection
from .._transport.spawn import DEFAULT_SPAWN_OPTIONS, SpawnOptions
from .._transport.worker import Worker, worker_of
from ..errors import CriuError, Problem

PROCESSES = "cgroup.procs"


def problem(cgroup: str | os.PathLike[str]) -> Problem | None:
    """What is wrong with the argument ``cgroup``."""
    path = os.fspath(cgroup)
    if not os.path.isabs(path) or not os.path.isfile(os.path.join(path, PROCESSES)):
        return Problem("cgroup", path, "the path of a cgroup's directory is accepted")
    return None


@dataclass(frozen=True)
class WorkerInCgroup:
    """A way to reach CRIU: ``via``'s worker, moved to a cgroup before it gets its request."""

    via: Via
    cgroup: str
    ours: ClassVar[bool] = True

    @property
    def worker(self) -> Worker | None:
        """The worker behind it, for the checks of a call."""
        return worker_of(self.via)

    @property
    def allow_untrusted(self) -> bool:
        """As the worker's."""
        return self.via.allow_untrusted

    def identity(self) -> tuple[object, ...] | None:
        """As the worker's."""
        return self.via.identity()

    def name(self) -> str:
        """As the worker's."""
        return self.via.name()

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """As the worker."""
        return self.via.refuses(inherits=inherits, sibling=sibling)

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """Start the worker and move it. ``CriuError`` where the kernel refuses that."""
        connection = self.via.connect(keep, spawn_options)
        try:
            with open(os.path.join(self.cgroup, PROCESSES), "w") as file:
                file.write(str(connection.pid))
        except OSError as error:
            connection.kill()
            connection.wait()
            raise CriuError(
                f"CRIU cannot be moved to the cgroup {self.cgroup}: {error.strerror}",
                errno=error.errno,
            ) from error
        return connection
