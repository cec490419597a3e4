"""Ends and reaps child processes by their pidfds."""

from __future__ import annotations

import contextlib
import os

from .lazy import signal


def sigkill(pidfd: int) -> None:
    """Send SIGKILL, unless the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def reap(pidfd: int, *, wait: bool = True) -> int | None:
    """Reap a process; returns its exit code, or negative the signal that ended it.

    None: it is no child, or no longer, as after another part of the program has reaped it; or
    without ``wait`` it has not ended.
    """
    with contextlib.suppress(ChildProcessError):
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | (0 if wait else os.WNOHANG))
        if ended is not None:
            return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    return None
