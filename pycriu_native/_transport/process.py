"""A ``criu`` process of our own: watched by its pidfd, ended, and reaped."""

from __future__ import annotations

import contextlib
import os
import select
import signal

from .._support.unpatched import poll

LARGEST_CHATTER = 256 * 1024
"""Bytes of a process's standard error that are kept."""


class ChildProcess:
    """A process that leads a group of its own, and the file that it writes its errors to.

    ``pidfd`` is -1 for a process that is not ours to watch: a self-dump must hold no pidfd of
    its worker, which CRIU could not save.
    """

    def __init__(self, pid: int, pidfd: int, stderr_text: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.status: int | None = None
        """Its exit status once it was reaped; negative for a signal, None if unknown."""
        self.final_stderr = ""
        """What it had written to its standard output and error when it was closed."""
        self._chatter = stderr_text

    @property
    def closed(self) -> bool:
        """Whether everything was given back."""
        return self._chatter < 0

    def has_ended(self, timeout: float | None = 0.0) -> bool:
        """Whether it has ended, waiting for at most this many seconds; None: for ever."""
        if self.pidfd < 0:
            return not os.path.exists(f"/proc/{self.pid}")
        readable = poll()
        readable.register(self.pidfd, select.POLLIN)
        return bool(readable.poll(None if timeout is None else timeout * 1000))

    def send_signal(self, number: int) -> None:
        """Signal it, if it is there to be signalled."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def wake(self) -> None:
        """Have it go on if somebody has stopped it.

        It alone: CRIU has children stop themselves, waits for that, and would wait for ever.
        """
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it and all that it has forked and not moved to a session of its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The group's number stays taken while it is unreaped: it cannot be another's.
            os.killpg(self.pid, signal.SIGKILL)
        self.send_signal(signal.SIGKILL)

    def wait(self, patience: float) -> None:
        """Wait for its end, and close; it is killed if that takes longer than ``patience``."""
        if self.closed:
            return
        if self.pidfd >= 0:
            if not self.has_ended(patience):
                self.kill()
                self.has_ended(patience)
            self._collect()
        self.close()

    def words(self) -> str:
        """What it has written to its standard output and error by now."""
        size = min(os.fstat(self._chatter).st_size, LARGEST_CHATTER)
        return os.pread(self._chatter, size, 0).decode(errors="replace")

    def close(self) -> None:
        """Give back what is ours, and leave the process alone."""
        if self.closed:
            return
        self.final_stderr = self.words()
        os.close(self._chatter)
        self._chatter = -1
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _collect(self) -> None:
        # ECHILD: it is not our child (self-dump), or the embedder reaps all children itself.
        with contextlib.suppress(ChildProcessError):
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            if result is not None:
                exited = result.si_code == os.CLD_EXITED
                self.status = result.si_status if exited else -result.si_status
