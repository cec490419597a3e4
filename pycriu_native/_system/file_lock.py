"""Locks of files and directories (flock(2)), also on file systems that have none."""

from __future__ import annotations

import contextlib
import fcntl

from .._support.unpatched import close


def lock(fd: int) -> bool:
    """Lock an open file; False if another open file of it has the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # this file system has no locks
    return True


def unlock_and_close(fd: int) -> None:
    """Unlock and close a file. Closing is not enough: a child of the caller may have a copy."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    close(fd)
