"""Worker: a ``criu swrk`` process started for one call, the default way to reach CRIU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from .._native.ffi import checked, ffi, native
from .._support.frozen_dataclass import dataclass, field
from .._support.light_typing import Any, ClassVar
from .._support.unpatched import close
from .._system.descriptors import is_inherited
from ..errors import OptionError, Problem
from ..options.values import Descriptor, descriptor_number, is_text
from .connection import Connection
from .process import ChildProcess
from .program import find_program, on_disk
from .spawn import DEFAULT_SPAWN_OPTIONS, SpawnOptions, spawn

PATIENCE = 10.0
"""Seconds that a worker may take to end after its response, before it is killed."""


class WorkerConnection(Connection):
    """A connection that also owns its process, until ``wait``, ``close_async`` or ``detach``."""

    def __init__(self, fd: int, process: ChildProcess, program: str) -> None:
        super().__init__(fd, program=program)
        self.pid = process.pid
        self.pidfd = process.pidfd
        self.retire: Callable[[ChildProcess], None] | None = None
        """Receives the process at the end of the connection, and reaps it if it is not reaped."""
        self._process: ChildProcess | None = process
        """None once the process is not owned any more."""

    def has_ended(self, timeout: float = 0.0) -> bool:
        return self._process is None or self._process.has_ended(timeout)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def wake(self) -> None:
        if self._process is not None:
            self._process.wake()

    def wait(self) -> None:
        self.close()
        if self._process is not None:
            self._process.wait(PATIENCE)
            self._release(self._process)

    def close_async(self) -> None:
        if self.retire is None:
            self.wait()
            return
        self.close()
        if self._process is not None:
            self._release(self._process)

    def detach(self) -> None:
        self.close()
        if self._process is not None:
            self._process.close()
            self._release(self._process)

    def _release(self, process: ChildProcess) -> None:
        self._process, self.pidfd = None, -1
        self.status, self.final_stderr = process.status, process.stderr_text()
        if self.retire is not None:
            self.retire(process)


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A ``criu swrk`` process, started for each call and reaped at its end: the default ``via``.

    It starts without a copy of the caller's memory, in a process group of its own, with default
    signal dispositions, a fixed environment, and no descriptor that CRIU does not need. A dump
    blocks the signals that a service manager sends to all processes of a service when it stops
    it (SIGTERM, SIGHUP, SIGINT, SIGQUIT): they would kill CRIU in the middle of the dump, and the
    dumped process could die with it. Other calls block no signal.
    """

    program: str | os.PathLike[str] | None = None
    """The ``criu`` to run; None: that of ``CRIU_PROGRAM`` in the environment, else the one
    recorded at build, of the package pycriu-native-criu, or of the system, in this order."""
    stdin: Descriptor | None = None
    """Standard input of CRIU. ``shell_job`` needs the terminal here, open for reading and
    writing. None: the caller's."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables added to the environment, which otherwise holds PATH and ``HOME=/``."""
    allow_untrusted: bool = False
    """Accept a program, directories and configuration files that other users of this machine could
    change or replace, and directories that are symbolic links. Default: refuse them."""

    ours: ClassVar[bool] = True

    def __post_init__(self) -> None:
        program, env = self.program, self.env
        if program is not None and not (
            isinstance(program, str | os.PathLike) and is_text(program) and os.fspath(program)
        ):
            raise ValueError(f"program={program!r}: a path or None is accepted")
        if not isinstance(env, Mapping) or not all(
            isinstance(text, str) and is_text(text) and name and "=" not in name
            for name, value in env.items()
            for text in (name, value)
        ):
            raise ValueError(f"env={env!r}: names of variables with their values, all str")

    def identity(self) -> tuple[object, ...]:
        """The program's path, device, inode and modification time."""
        return on_disk(find_program(self.program, allow_untrusted=self.allow_untrusted))

    def name(self) -> str:
        """The name in messages: the program's path."""
        return find_program(self.program, allow_untrusted=self.allow_untrusted)

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """A standard input that is not open; a worker supports every request."""
        try:
            self._input()
        except OptionError as error:
            yield from error.problems

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """Start the worker. ``keep``: descriptors above 2, inherited under the same numbers.

        Raises ``ProgramNotFoundError``, ``PermissionDeniedError``, ``ProgramError``,
        ``OptionError``.
        """
        program = find_program(self.program, allow_untrusted=self.allow_untrusted)
        return start_worker(program, self.env, self._input(), keep, spawn_options)

    def _input(self) -> int:
        if self.stdin is not None:
            try:
                fd = descriptor_number(self.stdin)
                os.fstat(fd)
            except (OSError, ValueError):
                raise OptionError(
                    [Problem("stdin", self.stdin, "an open descriptor or None is accepted")]
                ) from None
            return fd
        return 0 if is_inherited(0) else -1


def worker_of(via: object) -> Worker | None:
    """The :class:`Worker` that ``via`` is or starts; None for other ways."""
    result = via if isinstance(via, Worker) else getattr(via, "worker", None)
    return result if isinstance(result, Worker) else None


def start_worker(
    program: str,
    env: Mapping[str, str],
    stdin: int,
    keep: Sequence[int] = (),
    spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS,
) -> WorkerConnection:
    """Start ``program`` as a worker; ``stdin`` -1: /dev/null. Raises ``ProgramError``."""

    def start(channel: Any) -> tuple[int, int]:
        pid, pidfd = spawn(
            (program, "swrk", str(channel.remote)),
            env=env,
            stdin=stdin,
            output=channel.output,
            keep=[channel.remote, *keep],
            spawn_options=spawn_options,
        )
        if not spawn_options.detached:
            return pid, pidfd
        close(pidfd)
        return pid, -1

    return connect_worker(program, start)


def connect_worker(program: str, start: Callable[[Any], tuple[int, int]]) -> WorkerConnection:
    """Connect to the worker that ``start`` starts.

    ``start`` receives a ``struct pn_channel``, and returns pid and pidfd.
    """
    channel = ffi.new("struct pn_channel *")
    checked(native.pn_open_channel(channel))
    try:
        pid, pidfd = start(channel)
    except BaseException:
        close(channel.local)
        close(channel.output)
        raise
    finally:
        close(channel.remote)
    return WorkerConnection(channel.local, ChildProcess(pid, pidfd, channel.output), program)
