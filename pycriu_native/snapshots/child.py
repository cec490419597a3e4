"""A child of this process that CRIU or a zygote has created."""

from __future__ import annotations

import os

from .._support.pidfd import reap
from .._support.unpatched import close, readable


class PidfdChild:
    """A child process, and its pidfd, which this object owns, and which its end makes readable."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._status: int | None = None

    def status(self) -> int | None:
        """The exit status, negative for a signal; None if it runs. Reaps the process."""
        if self._status is None:
            has_ended = readable(self.pidfd)
            self._status = reap(self.pidfd, wait=False)
            if self._status is None and has_ended:
                # Another part of this program has reaped it; status 0, as in subprocess.
                self._status = 0
        return self._status

    def close(self, *, wait: bool) -> bool:
        """Close the pidfd. Subclasses end all processes, and with ``wait`` reap them before.

        Returns whether all have ended.
        """
        if self.pidfd >= 0:
            close(self.pidfd)
            self.pidfd = -1
        return True


class EndedChild(PidfdChild):
    """A child process that has ended and is reaped; in place of a pidfd it has an eventfd."""

    def __init__(self, pid: int, status: int) -> None:
        super().__init__(pid, os.eventfd(1, os.EFD_CLOEXEC))  # it is readable
        self._status = status
