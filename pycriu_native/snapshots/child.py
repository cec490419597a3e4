"""A process that was not started by this one, and is its child all the same."""

from __future__ import annotations

import os

from .._support.unpatched import readable


class PidfdChild:
    """A child of this process by its pidfd, which it owns."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._status: int | None = None

    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs. Reaps it."""
        if self._status is None:
            try:
                ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                # Another part of this program has reaped it. subprocess calls that status 0, too.
                self._status = 0 if readable(self.pidfd) else None
                return self._status
            if ended is not None:
                exited = ended.si_code == os.CLD_EXITED
                self._status = ended.si_status if exited else -ended.si_status
        return self._status
