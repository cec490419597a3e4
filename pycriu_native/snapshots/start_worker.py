"""The worker that restores one copy, optionally in a cgroup, and ends with the copy."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from .._support.closing import Closing
from .._support.frozen_dataclass import replace
from .._support.unpatched import Thread, close
from .._transport.base import Via
from .._transport.connection import Connection
from .._transport.lifetime_sockets import LifetimeSockets
from .._transport.spawn import DEFAULT_SPAWN_OPTIONS, SpawnOptions
from .._transport.worker import Worker, worker_of
from ..errors import CriuError, Problem
from .namespaces import Namespaces, is_ready
from .shared_template import SharedTemplate
from .timings import Stopwatch

PROCESSES = "cgroup.procs"
PATIENCE = 10.0
"""Seconds to wait for the end of CRIU after the namespaces have ended."""


def problem(cgroup: str | os.PathLike[str]) -> Problem | None:
    """The problem of the argument ``cgroup``, if any."""
    path = os.fspath(cgroup)
    if not os.path.isabs(path) or not os.path.isfile(os.path.join(path, PROCESSES)):
        return Problem("cgroup", path, "the path of a cgroup's directory is accepted")
    return None


class StartWorker(Closing):
    """The worker of ``via``, moved to a cgroup before it receives its request.

    CRIU can wait endlessly if the process that it restores is killed (4.2.1, after "Unable to set
    PTRACE_O_TRACESYSGOOD"). CRIU is therefore killed some seconds after the end of the namespaces,
    and a worker that was started for the call also when this process ends. ``close`` does not end
    the worker.
    """

    ours: ClassVar[bool] = True

    def __init__(
        self,
        via: Via,
        cgroup: str | os.PathLike[str] | None,
        namespaces: Namespaces,
        watch: Stopwatch,
    ) -> None:
        self._watch = watch
        self.via = via
        self.cgroup = cgroup
        self.namespaces = namespaces
        self._cancelled, self._cancel = os.pipe()
        self._lifetime_sockets = LifetimeSockets()
        self._guards: list[tuple[Any, int]] = []

    def close(self) -> None:
        """Stop the threads that watch the worker."""
        os.write(self._cancel, b"x")  # a fork of this process may have the pipe open
        close(self._cancel)
        for thread, pidfd in self._guards:
            thread.join()
            close(pidfd)
        close(self._cancelled)
        self._lifetime_sockets.close()

    @property
    def worker(self) -> Worker | None:
        """The worker of ``via``, for the checks of a call."""
        return worker_of(self.via)

    @property
    def allow_untrusted(self) -> bool:
        """As for the worker."""
        return self.via.allow_untrusted

    def identity(self) -> tuple[object, ...] | None:
        """As for the worker."""
        return self.via.identity()

    def name(self) -> str:
        """As for the worker."""
        return self.via.name()

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """As for the worker."""
        return self.via.refuses(inherits=inherits, sibling=sibling)

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """Start the worker and move it to the cgroup. ``CriuError`` if the kernel refuses that.

        The namespaces are set up at the same time.
        """
        if isinstance(self.via, Worker | SharedTemplate):
            spawn_options = replace(spawn_options, lifetime_sockets=self._lifetime_sockets.ends)
        connection = self.via.connect(keep, spawn_options)
        try:
            if self.cgroup is not None:
                _move(connection.pid, self.cgroup)
            self.namespaces.wait_until_ready()
            pidfd = os.pidfd_open(connection.pid)
        except BaseException:
            connection.kill()
            connection.wait()
            raise
        guard = Thread(target=self._guard, args=(pidfd,), name="criu start", daemon=True)
        self._guards.append((guard, pidfd))
        guard.start()
        self._watch.ends("worker")
        return connection

    def _guard(self, pidfd: int) -> None:
        # A copy may end at once; CRIU then still has to send its response.
        if self.namespaces.wait_for_end(self._cancelled) and not is_ready(
            self._cancelled, PATIENCE
        ):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _move(pid: int, cgroup: str | os.PathLike[str]) -> None:
    try:
        with open(os.path.join(cgroup, PROCESSES), "w") as file:
            file.write(str(pid))
    except OSError as error:
        raise CriuError(
            f"CRIU cannot be moved to the cgroup {cgroup}: {error.strerror}", errno=error.errno
        ) from error
