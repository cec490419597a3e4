"""A program that is started for a snapshot, and waits in ``guest.wait()``."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .. import guest
from .._support.closing import Closing
from .._support.lazy import socket
from .._support.unpatched import Thread, close, write
from .._system.descriptors import is_inherited
from .._system.socket_pair import pair
from .._transport.lifetime_sockets import F_SETSIG, kill_on_event
from ..errors import CriuError, DeadlineError
from .copy_request import LAST_STREAM
from .guest_socket import read_ready
from .uninterrupted import signals_of_caller

GUEST = 3
"""The index of the guest's socket, after the standard streams."""

TAIL = 16384
"""Bytes of a program's output that a note of an error shows."""
LAST_OUTPUT = "its last output:"
"""The start of this note. The output went to the caller's standard error too."""


class EndWithCaller(Closing):
    """Lets the kernel kill a process group when this process ends.

    The signal is that of the program's standard input, a socket to which this process writes
    nothing: its only event is the end of the peer (fcntl(2), O_ASYNC). PR_SET_PDEATHSIG would be
    saved with the program, and would need code between fork and exec.
    """

    def __init__(self, ours: int, theirs: int) -> None:
        # At the end of a process the kernel closes descriptors in ascending order: the peer first.
        self._fd = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, ours + 1)

    def bind(self, pid: int) -> None:
        """Bind the group of this process, its leader."""
        kill_on_event(self._fd, pid)

    def close(self) -> None:
        """Release the group. A second call does nothing."""
        if self._fd < 0:
            return
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_ASYNC)
        fcntl.fcntl(self._fd, F_SETSIG, 0)
        fcntl.fcntl(self._fd, fcntl.F_SETOWN, 0)
        close(self._fd)
        self._fd = -1


class ParkedProgram(Closing):
    """A program whose streams are connected to sockets of this process until it is saved.

    A restore can replace a socket by any descriptor. It would reopen the replacement of a pipe, and
    so lose the position of a file, and accept no socket (CRIU's ``criu/pipes.c``,
    ``criu/sk-unix.c``). The output of the program is forwarded to a descriptor. ``close`` kills the
    program if it still runs.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        output: int,
    ) -> None:
        """Start the program. Raises ``OSError`` like ``subprocess.Popen``."""
        self._sockets, theirs = zip(*(pair() for _ in range(4)), strict=True)
        self.socket = self._sockets[GUEST]
        self.inodes = tuple(os.fstat(each.fileno()).st_ino for each in theirs)
        """The inodes of the program's sockets: standard input, output, error, and the guest's."""
        self.guest_fd = theirs[GUEST].fileno()
        self.forks = False
        """Whether it can fork copies of itself on request."""
        self._tail = bytearray()
        self._output = output
        self._name = os.fsdecode(argv[0])
        environment = dict(os.environ if env is None else env)
        environment[guest.VARIABLE] = str(self.guest_fd)
        self._end_with_caller = EndWithCaller(self._sockets[0].fileno(), theirs[0].fileno())
        try:
            with signals_of_caller():
                self.process = subprocess.Popen(
                    argv,
                    stdin=theirs[0],
                    stdout=theirs[1],
                    stderr=theirs[2],
                    pass_fds=[self.guest_fd],
                    start_new_session=True,
                    env=environment,
                    cwd=cwd,
                )
        except BaseException:
            for each in self._sockets:
                each.close()
            self._end_with_caller.close()
            raise
        finally:
            for each in theirs:
                each.close()
        self._readers: list[Any] = []
        try:
            self._end_with_caller.bind(self.process.pid)
            for stream in self._sockets[1:GUEST]:
                name = "output of a parked program"
                reader = Thread(self._pass_on, name, (stream,), daemon=True)
                reader.start()
                self._readers.append(reader)
        except BaseException:
            self.close()
            raise

    def _pass_on(self, stream: socket.socket) -> None:
        while data := stream.recv(65536):
            self._tail += data
            del self._tail[:-TAIL]
            with contextlib.suppress(OSError):
                write(self._output, data)

    def wait_until_parked(self, until: float | None) -> None:
        """Wait until the program has called ``guest.wait()``.

        Raises ``CriuError`` if it ends before, ``DeadlineError`` at ``until`` (time.monotonic()).
        """
        try:
            line = read_ready(self.socket, until)
            self._end_with_caller.close()
        except (CriuError, DeadlineError) as error:
            raise self._failed(str(error), type(error)) from None
        if not line:
            self._ended()
        if self.process.poll() is not None:
            raise self._failed(
                "has ended; a process that it has started may have called guest.wait()"
            )
        self.forks = line == guest.READY_TO_FORK

    def _ended(self) -> None:
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            raise self._failed(f"has closed the descriptor of {guest.VARIABLE}") from None
        for reader in self._readers:
            reader.join(5)
        raise self._failed(f"ended with status {status} before it called guest.wait()")

    def _failed(self, what: str, kind: type[CriuError] = CriuError) -> CriuError:
        error = kind(f"the program {self._name} {what}")
        if shown := self._tail.decode(errors="replace").strip():
            error.add_note(f"{LAST_OUTPUT}\n{shown}")
        return error

    def close(self) -> None:
        """Kill the program if it runs, and reap it."""
        self._end_with_caller.close()
        self.process.kill()  # before its socket is closed: it would print that it has to end
        self.socket.close()
        self.process.wait()
        for each in self._sockets[:GUEST]:
            with contextlib.suppress(OSError):  # a child of the program may have the other end open
                each.shutdown(socket.SHUT_RDWR)
        for reader in self._readers:
            reader.join()
        for each in self._sockets[:GUEST]:
            each.close()


def default_output() -> int:
    """Standard error, the default for the output of a program before it is saved; -1 if closed."""
    try:
        fd = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # None, closed, or without a descriptor
        fd = LAST_STREAM
    return fd if fd > LAST_STREAM or is_inherited(fd) else -1
