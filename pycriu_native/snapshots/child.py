"""A child of this process that CRIU or a zygote has created."""

from __future__ import annotations

from .._support.pidfd import reap, sigkill
from .._support.unpatched import close, readable


class Child:
    """A child process, and its pidfd, which this object owns."""

    def __init__(self, pid: int, pidfd: int, status: int | None = None) -> None:
        """``status``: its exit status if it has ended and is reaped."""
        self.pid = pid
        self.pidfd = pidfd
        """A descriptor that is readable after the process has ended; -1 after :meth:`close`."""
        self._status = status

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

    def close(self, *, wait: bool) -> bool:
        """End the remaining processes; with ``wait`` reap them. Returns whether all ended."""
        if self.pidfd >= 0:
            self.end()
            close(self.pidfd)
            self.pidfd = -1
        return True
