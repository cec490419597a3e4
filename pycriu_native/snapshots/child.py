"""A child of this process that CRIU or a zygote has created."""

from __future__ import annotations

import os

from .._support.pidfd import reap, sigkill
from .._support.unpatched import close, readable


class EndedChild:
    """A child process that has ended and is reaped."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.pidfd = os.eventfd(1, os.EFD_CLOEXEC)
        """In place of a pidfd: it is readable."""
        self._status = status

    def status(self) -> int | None:
        """The exit status, negative for a signal."""
        return self._status

    def close(self, *, wait: bool) -> bool:
        """Close the descriptor."""
        if self.pidfd >= 0:
            close(self.pidfd)
            self.pidfd = -1
        return True


class PidfdChild:
    """A child process, and its pidfd, which this object owns."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._status: int | None = None

    def end(self) -> None:
        """Kill the process, and store its exit status."""
        if self.pidfd >= 0 and self.status() is None:
            sigkill(self.pidfd)
            readable(self.pidfd, seconds=None)
            self.status()

    def status(self) -> int | None:
        """The exit status, negative for a signal; None if it runs. Reaps the process."""
        if self._status is None:
            has_ended = readable(self.pidfd)
            self._status = reap(self.pidfd, wait=False)
            if self._status is None and has_ended:
                # Another part of this program has reaped it; status 0, as in subprocess.
                self._status = 0
        return self._status
