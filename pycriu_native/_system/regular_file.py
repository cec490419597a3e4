"""Opens files of image sets, which other users may have made: regular files only."""

from __future__ import annotations

import errno
import os
import stat


def open_regular(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> int:
    """Open a regular file for reading and return its descriptor; neither blocks nor follows links.

    Raises ``OSError``; with ``EINVAL`` for a directory, a FIFO, a socket or a device, and with
    ``ELOOP`` for a symbolic link.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return fd


def check_writable(directory: int, name: str) -> None:
    """Raise ``OSError`` where CRIU's open for writing would block or write elsewhere.

    CRIU opens its log and its statistics without ``O_NONBLOCK``: a FIFO blocks it for ever.
    """
    try:
        result = os.stat(name, dir_fd=directory)
    except OSError:
        return
    if not stat.S_ISREG(result.st_mode) and not stat.S_ISCHR(result.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", name)
