"""Locks of files and directories (flock(2)), also on file systems that have none."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

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


@contextlib.contextmanager
def locked_directory(path: str | os.PathLike[str]) -> Iterator[None]:
    """Wait for the lock of a directory, and hold it in the block. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # this file system has no locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        unlock_and_close(fd)


def unlock_and_close(fd: int) -> None:
    """Unlock and close a file. Closing is not enough: a child of the caller may have a copy."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    close(fd)
