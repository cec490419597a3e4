"""The worker that restores one copy, optionally in a cgroup, and ends with the copy."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import cast

from .._support.pidfd import sigkill
from .._support.unpatched import RawThread, close, readable, write
from .._transport.base import Via
from .._transport.connection import Connection
from .._transport.forkserver import ForkServer
from .._transport.forwarding_via import ForwardingVia
from .._transport.lifetime_sockets import LifetimeSockets
from .._transport.process import ChildProcess
from .._transport.spawn import DEFAULT_SPAWN_OPTIONS, RESTORING, SpawnOptions
from .._transport.worker import Worker, WorkerConnection
from ..errors import CriuError, Problem
from .arguments import is_path
from .forked_workers import ForkedWorkers
from .namespaces import Namespaces
from .timings import Stopwatch

PROCESSES = "cgroup.procs"
PATIENCE = 10.0
"""Seconds to wait for the end of CRIU after the namespaces have ended."""


def problem(cgroup: object) -> Problem | None:
    """The problem of the argument ``cgroup``, if any."""
    rule = "the absolute path of a cgroup's directory is accepted"
    if not is_path(cgroup):
        return Problem("cgroup", cgroup, rule)
    path = os.fspath(cast("str | os.PathLike[str]", cgroup))
    if not os.path.isabs(path) or not os.path.isfile(os.path.join(path, PROCESSES)):
        return Problem("cgroup", path, rule)
    return None


class StartWorker(ForwardingVia):
    """The worker of ``via``, moved to a cgroup before it receives its request.

    CRIU waits for ever if the process that it restores is killed at some instants (4.2.1, after
    "Unable to set PTRACE_O_TRACESYSGOOD"). So it is killed some seconds after the end of the
    namespaces, and a worker that is started for the call also when this process ends.
    """

    def __init__(
        self,
        via: Via,
        fork_server: ForkServer | None,
        cgroup: str | os.PathLike[str] | None,
        namespaces: Namespaces,
        watch: Stopwatch,
        on_success: Callable[[], object] | None = None,
    ) -> None:
        """``fork_server``: that of ``via``, which has just been found to be as it must be."""
        super().__init__(via)
        self._watch = watch
        self._on_success = on_success
        self.fork_server = fork_server
        self.cgroup = cgroup
        self.namespaces = namespaces
        self._guards: list[_Guard] = []

    def end(self) -> None:
        """The copy runs: the worker is left alone, and reaped when it has ended."""
        for guard in self._guards:
            guard.end()

    def close(self) -> None:
        """Wait until the worker is reaped."""
        self.end()
        for guard in self._guards:
            guard.thread.join()

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """Start the worker and move it to the cgroup. ``CriuError`` if the kernel refuses that.

        The namespaces are set up at the same time.
        """
        with ExitStack() as undo:
            sockets = undo.enter_context(LifetimeSockets())
            connection = self._connect(keep, spawn_options, sockets)
            undo.callback(connection.wait)
            undo.callback(connection.kill)
            if self.cgroup is not None:
                _move(connection.pid, self.cgroup)
            self.namespaces.wait_until_ready()
            self._guards.append(_Guard(connection, self.namespaces, sockets))
            if spawn_options == RESTORING:  # others ask for the release or the features of CRIU
                connection.on_success = self._on_success
            undo.pop_all()
        self._watch.ends("worker")
        return connection

    def _connect(
        self, keep: Sequence[int], spawn_options: SpawnOptions, sockets: LifetimeSockets
    ) -> Connection:
        if not isinstance(self.via, Worker | ForkedWorkers):
            return self.via.connect(keep, spawn_options)
        keep = [*keep, *sockets.ends]
        if isinstance(self.via, ForkedWorkers):
            connection = self.via.connect(keep, spawn_options, self.fork_server)
        else:
            connection = self.via.connect(keep, spawn_options)
        connection.on_begin = functools.partial(sockets.bind, connection.pid)
        return connection


class _Guard:
    """The thread that watches one worker, and reaps it."""

    def __init__(
        self, connection: Connection, namespaces: Namespaces, sockets: LifetimeSockets
    ) -> None:
        """Takes over the sockets."""
        self._namespaces = namespaces
        self._sockets = sockets
        self._retired: ChildProcess | None = None
        self._pidfd = os.pidfd_open(connection.pid)
        self._cancelled, self._cancel = os.pipe()
        self.thread = RawThread(self._run, "criu start", daemon=True)
        try:
            self.thread.start()
        except BaseException:
            self._close()
            close(self._cancel)
            raise
        if isinstance(connection, WorkerConnection) and connection.retire is None:
            connection.retire = self._retire

    def _retire(self, process: ChildProcess) -> None:
        self._retired = process

    def end(self) -> None:
        """The call is over. A second time does nothing."""
        if self._cancel >= 0:
            write(self._cancel, b"x")  # a fork of this process may hold the pipe open
            close(self._cancel)
            self._cancel = -1

    def _run(self) -> None:
        # A copy may end at once: CRIU then gets the time to say that it was restored.
        if self._namespaces.wait_for_end(self._cancelled) and not readable(
            self._cancelled, seconds=PATIENCE
        ):
            sigkill(self._pidfd)
            readable(self._cancelled, seconds=None)
        if self._retired is not None:
            self._retired.wait(PATIENCE)
        self._close()

    def _close(self) -> None:
        self._sockets.close()
        close(self._pidfd)
        close(self._cancelled)


def _move(pid: int, cgroup: str | os.PathLike[str]) -> None:
    try:
        with open(os.path.join(cgroup, PROCESSES), "w") as file:
            file.write(str(pid))
    except OSError as error:
        raise CriuError(
            f"CRIU cannot be moved to the cgroup {cgroup}: {error.strerror}", errno=error.errno
        ) from error
