"""The namespaces of a copy, and their init process."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from contextlib import ExitStack
from errno import EPERM
from pathlib import Path

from .._support.closing import Closing
from .._support.pidfd import reap, sigkill
from .._support.unpatched import RawThread, close, closing, read, readable
from .._system.descriptors import above_stdio, link
from .._system.process import children_of
from .._system.socket_pair import pair
from .._transport.spawn import spawn
from ..errors import CriuError, PermissionDeniedError, ProgramError

PROGRAM = Path(__file__).parent.parent / "_native" / "namespace_init"

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x20000000, 0x40000000

INT = struct.Struct("i")

PATIENCE = 10.0
"""Seconds to wait for the end of a namespace's processes after they were killed."""


NOT_PERMITTED = (
    "the namespaces of a copy need CAP_SYS_ADMIN, which this process lacks; in a user namespace an "
    "ordinary user has it: unshare --user --map-root-user --pid --fork --mount-proc COMMAND"
)


class Namespaces(Closing):
    """New pid and mount namespaces, and optional others, held by an init process.

    All processes in them end when this object is closed, when this process ends, or when the
    process that :meth:`expect` names has ended.
    """

    def __init__(self, *, network: bool = False, hostname: str | None = None) -> None:
        """Start their creation on another thread; each method that needs the process waits for it.

        Those methods raise ``CriuError`` and ``ProgramError``.
        """
        self._network, self._hostname = network, hostname
        self._control, self._theirs = pair()
        self._pid, self._pidfd = 0, -1
        self._error: Exception | None = None
        self._is_ready = False
        self._creating = RawThread(self._create, "criu namespaces", daemon=True)
        try:
            self._creating.start()
        except RuntimeError:  # no thread can be started
            self._create()

    def _create(self) -> None:
        """Start the init process. The kernel needs almost a millisecond for that."""
        flags = CLONE_NEWPID | CLONE_NEWNS
        flags |= CLONE_NEWNET if self._network else 0
        flags |= 0 if self._hostname is None else CLONE_NEWUTS
        try:
            with ExitStack() as owned:
                owned.enter_context(self._theirs)
                caller = owned.enter_context(closing(above_stdio(os.pidfd_open(os.getpid()))))
                null = owned.enter_context(closing(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)))
                words = [str(PROGRAM), str(caller), *(["--network"] if self._network else [])]
                words += [] if self._hostname is None else ["--hostname", self._hostname]
                self._pid, self._pidfd = spawn(
                    words,
                    env={},
                    stdin=self._theirs.fileno(),
                    output=null,
                    keep=[caller],
                    namespaces=flags,
                )
        except ProgramError as error:
            self._error = error
            if error.errno == EPERM:
                self._error = PermissionDeniedError(NOT_PERMITTED, errno=EPERM)
        except Exception as error:
            self._error = error

    @property
    def pid(self) -> int:
        """The pid of the init process."""
        self._creating.join()
        if self._error is not None:
            raise self._error
        return self._pid

    def wait_until_ready(self) -> None:
        """Wait until the namespaces are set up, with /proc mounted. Raises ``CriuError``.

        It can be called again, since a restore can start several workers.
        """
        if self._is_ready:
            return
        _ = self.pid  # raises the error of the creation
        # By descriptor, since a socket of gevent belongs to one thread.
        readable(self._control.fileno(), seconds=None)
        try:
            answer = read(self._control.fileno(), INT.size)
        except ConnectionResetError:  # the process ended before it read the data
            answer = b""
        code = INT.unpack(answer)[0] if answer else None
        if code != 0:
            reason = "its first process ended" if code is None else os.strerror(code)
            raise CriuError(f"the namespaces could not be set up: {reason}", errno=code)
        self._is_ready = True

    def file(self, kind: str) -> str:
        """The path of a namespace: ``pid``, ``mnt``, ``net`` or ``uts``."""
        return f"/proc/{self.pid}/ns/{kind}"

    def open(self, kind: str) -> int:
        """A descriptor of a namespace; the caller closes it."""
        return os.open(self.file(kind), os.O_RDONLY | os.O_CLOEXEC)

    def expect(self, pid: int) -> None:
        """End the namespaces when the process that will have this pid in them ends."""
        self._send(pid)

    def restored(self) -> None:
        """The expected process was created; the namespaces end if it has already ended."""
        self._send(0)

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError):  # they have ended
            self._control.sendall(INT.pack(number))

    def wait_for_end(self, cancelled: int) -> bool:
        """Wait until the init process ends. False when the descriptor ``cancelled`` is readable.

        The init process closes its socket when it ends. Its pidfd becomes readable later, when all
        other processes are reaped. ``cancelled`` is readable before this object is closed, which
        can be before a thread calls this.
        """
        control = self._control.fileno()
        if control < 0:
            return False
        readable(control, cancelled, seconds=None)
        return not readable(cancelled)

    def has_ended(self, timeout: float = 0.0) -> bool:
        """Whether all of their processes have ended and are reaped, after at most ``timeout``."""
        return self._pidfd < 0 or readable(self._pidfd, seconds=timeout)

    def end(self) -> None:
        """Kill all of their processes, without waiting."""
        self._creating.join()
        self._control.close()
        if self._pidfd >= 0:
            sigkill(self._pidfd)

    def close(self) -> None:
        """Kill all of their processes, and reap those that are children of this one."""
        self._creating.join()
        if self._pidfd < 0:
            self._control.close()
            return
        inside = link(self.file("pid"))
        self.end()
        until = time.monotonic() + PATIENCE
        # The init process ends after the parents of all others have reaped them.
        while not self.has_ended(0.002) and time.monotonic() < until:
            self._reap(inside)
        reap(self._pidfd, wait=False)
        close(self._pidfd)
        self._pidfd = -1

    def _reap(self, inside: str) -> None:
        for pid in children_of(os.getpid()):
            if pid != self.pid and inside and link(f"/proc/{pid}/ns/pid") == inside:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
