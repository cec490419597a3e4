"""A CRIU worker of our own, started for one request: the default way to reach CRIU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from .._native.ffi import ffi, native
from .._support.frozen_dataclass import dataclass, field
from .._support.lazy import socket
from .._support.light_typing import Any, ClassVar
from ..errors import Problem
from ..options.values import Descriptor, descriptor_number
from .connection import Connection
from .process import ChildProcess
from .program import find_program, on_disk
from .spawn import DEFAULT_SPAWN_OPTIONS, SpawnOptions, spawn

PATIENCE = 10.0
"""Seconds that a worker gets to end by itself once it has answered."""


class WorkerConnection(Connection):
    """A connection to a worker of our own, and that process, owned."""

    def __init__(self, sock: socket.socket, process: ChildProcess, program: str) -> None:
        super().__init__(sock, program=program)
        self.later: Callable[[ChildProcess], None] | None = None
        """Who is told when the process is done with, and reaps it if it was released."""
        self._released = False
        self.pid = process.pid
        self.pidfd = process.pidfd
        self._process = process

    def has_ended(self, timeout: float = 0.0) -> bool:
        return self._process.has_ended(timeout)

    def kill(self) -> None:
        self._process.kill()

    def wake(self) -> None:
        self._process.wake()

    def wait(self) -> None:
        """Wait for the worker's end; it is killed if it takes longer than PATIENCE."""
        if self._released:
            return
        self.close()
        self._process.wait(PATIENCE)
        self._remember()
        self._hand_over()

    def close_async(self) -> None:
        if self.later is None:
            self.wait()
            return
        self.close()
        self.final_stderr = self._process.words()
        self.pidfd = -1
        self._released = True
        self._hand_over()

    def detach(self) -> None:
        self.close()
        self._process.close()
        self._remember()
        self._hand_over()

    def _hand_over(self) -> None:
        later, self.later = self.later, None
        if later is not None:
            later(self._process)

    def _remember(self) -> None:
        self.status = self._process.status
        self.final_stderr = self._process.final_stderr
        self.pidfd = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A ``criu swrk`` process of our own, for one call: the default way to reach CRIU.

    It is started without copying the caller's memory, in a process group of its own, with
    default signal dispositions, a fixed environment, and no descriptor that CRIU does not need.
    No signal is blocked, but for a dump: what a service manager sends to all processes of a
    service that it stops (SIGTERM, SIGHUP, SIGINT, SIGQUIT) would kill CRIU in the middle, and
    that can cost the process its life. It is reaped when the call ends.
    """

    program: str | os.PathLike[str] | None = None
    """The ``criu`` to run; None: that of ``CRIU_PROGRAM`` in the environment, else the one
    recorded at build, of the package pycriu-native-criu, or of the system, in this order."""
    stdin: Descriptor | None = None
    """Its standard input, which ``shell_job`` needs to be the terminal, open for reading and
    writing; None: the caller's."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment, which is otherwise PATH and HOME=/."""
    allow_untrusted: bool = False
    """Use a program, directories and configuration files that other users of this machine could
    change or swap, and directories that are symbolic links. Default: refuse them."""

    ours: ClassVar[bool] = True

    def identity(self) -> tuple[object, ...]:
        """Which program this is, as it is on disk now."""
        return on_disk(find_program(self.program, allow_untrusted=self.allow_untrusted))

    def name(self) -> str:
        """What to call it in messages."""
        return find_program(self.program, allow_untrusted=self.allow_untrusted)

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """A worker of our own can do everything."""
        return iter(())

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """Start the worker.

        ``keep`` are descriptors above 2 that it gets under the same numbers. Raises
        ``ProgramNotFoundError``, ``ProgramError``.
        """
        program = find_program(self.program, allow_untrusted=self.allow_untrusted)
        return start_worker(program, self.env, self._input(), keep, spawn_options)

    def _input(self) -> int:
        fd = 0 if self.stdin is None else descriptor_number(self.stdin)
        try:
            os.fstat(fd)
        except OSError:
            if self.stdin is not None:
                raise
            return -1
        return fd


def worker_of(via: object) -> Worker | None:
    """The worker that ``via`` starts, if it starts one of ours."""
    result = via if isinstance(via, Worker) else getattr(via, "worker", None)
    return result if isinstance(result, Worker) else None


def start_worker(
    program: str,
    env: Mapping[str, str],
    stdin: int,
    keep: Sequence[int] = (),
    spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS,
) -> WorkerConnection:
    """Start ``program`` as a worker; ``stdin`` -1 is /dev/null. Raises ``ProgramError``."""

    def start(ends: Any) -> tuple[int, int]:
        pid, pidfd = spawn(
            (program, "swrk", str(ends.theirs)),
            env=env,
            stdin=stdin,
            output=ends.output,
            keep=[ends.theirs, *keep],
            spawn_options=spawn_options,
        )
        if not spawn_options.outside:
            return pid, pidfd
        os.close(pidfd)
        return pid, -1

    return connect_worker(program, start)


def connect_worker(program: str, start: Callable[[Any], tuple[int, int]]) -> WorkerConnection:
    """A worker that ``start`` makes, out of a ``struct pn_ends``; it returns pid and pidfd."""
    ends = ffi.new("struct pn_ends *")
    status = native.pn_make_ends(ends)
    if status:
        raise OSError(-status, os.strerror(-status))
    try:
        pid, pidfd = start(ends)
    except BaseException:
        os.close(ends.ours)
        os.close(ends.output)
        raise
    finally:
        os.close(ends.theirs)
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, ends.ours)
    return WorkerConnection(ours, ChildProcess(pid, pidfd, ends.output), program)
