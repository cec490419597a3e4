"""ChildProcess: a ``criu`` child process, watched by its pidfd, ended, and reaped."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence

from .._native.ffi import native
from .._support.light_typing import Self
from .._support.pidfd import reap
from .._support.unpatched import close, readable
from .._system.descriptors import above_stdio
from .spawn import spawn


class ChildProcess:
    """A process that leads its own process group, and the file with its standard error.

    ``pidfd`` is -1 in a self-dump: the dumped process must hold no pidfd of its worker, since CRIU
    could not save that.
    """

    largest_stderr = 256 * 1024
    """Bytes of its standard output and error that are kept."""

    def __init__(self, pid: int, pidfd: int, stderr_fd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.status: int | None = None
        """Its exit status once it was reaped; negative for a signal, None if unknown."""
        self.final_stderr = ""
        """Its standard output and error up to ``close``."""
        self._stderr = stderr_fd

    @classmethod
    def start(
        cls,
        arguments: Sequence[str],
        env: Mapping[str, str],
        *,
        keep: Sequence[int] = (),
        namespaces: int = 0,
    ) -> Self:
        """Start a program, see :func:`spawn`, that reads /dev/null. Raises ``ProgramError``."""
        output = above_stdio(os.memfd_create("stderr", os.MFD_CLOEXEC))
        try:
            pid, pidfd = spawn(
                arguments, env=env, stdin=-1, output=output, keep=keep, namespaces=namespaces
            )
        except BaseException:
            close(output)
            raise
        return cls(pid, pidfd, output)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._stderr < 0

    def has_ended(self, timeout: float | None = 0.0) -> bool:
        """Whether it has ended; waits for at most ``timeout`` seconds, None: without a limit."""
        if self.pidfd < 0:
            return not os.path.exists(f"/proc/{self.pid}")
        return readable(self.pidfd, seconds=timeout)

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended or cannot be watched."""
        if self.pidfd >= 0:
            status = native.pn_send_signal(self.pidfd, number)
            if status not in (0, -errno.ESRCH):
                raise OSError(-status, os.strerror(-status))

    def wake(self) -> None:
        """Continue it if it was stopped by a signal.

        The children are left stopped: during a restore CRIU lets them stop themselves, and waits
        for that without a limit.
        """
        self.send_signal(native.pn_sigcont)

    def kill(self) -> None:
        """Kill it and its descendants, except those in a session of their own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The group's number is not reused while its leader is not reaped.
            os.killpg(self.pid, native.pn_sigkill)
        self.send_signal(native.pn_sigkill)

    def wait(self, patience: float) -> None:
        """Wait for its end, reap it, and close; after ``patience`` seconds it is killed."""
        if self.closed:
            return
        if self.pidfd >= 0:
            if not self.has_ended(patience):
                self.kill()
                self.has_ended(patience)
            self.status = reap(self.pidfd)
        self.close()

    def stderr_text(self) -> str:
        """Its standard output and error so far."""
        if self.closed:
            return self.final_stderr
        size = min(os.fstat(self._stderr).st_size, self.largest_stderr)
        return os.pread(self._stderr, size, 0).decode(errors="replace")

    def close(self) -> None:
        """Close the descriptors; the process is neither ended nor reaped."""
        if self.closed:
            return
        self.final_stderr = self.stderr_text()
        close(self._stderr)
        self._stderr = -1
        if self.pidfd >= 0:
            close(self.pidfd)
            self.pidfd = -1
