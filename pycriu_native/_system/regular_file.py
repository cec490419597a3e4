"""Opens files in images directories, which are not trusted: regular files only."""

from __future__ import annotations

import errno
import os
import stat

from .._support.unpatched import close

LARGEST_EXCERPT = 256 * 1024
"""Bytes read from the end of a log: a debug log of a large tree can be gigabytes."""


def open_regular(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> int:
    """Open a regular file for reading and return its descriptor; neither blocks nor follows links.

    Raises ``OSError``; with ``EINVAL`` for a directory, a FIFO, a socket or a device, and with
    ``ELOOP`` for a symbolic link.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return fd


def check_writable(directory: int, name: str) -> None:
    """Raise ``OSError`` if CRIU's open for writing would block or write to another type of file.

    CRIU opens its log and its statistics without ``O_NONBLOCK``: a FIFO blocks it forever.
    """
    try:
        result = os.stat(name, dir_fd=directory)
    except OSError:
        return
    if not stat.S_ISREG(result.st_mode) and not stat.S_ISCHR(result.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", name)


class LogMark:
    """The state of a log before a call, to recognize a log that the call has written."""

    def __init__(self, directory: int, name: str) -> None:
        """Read the state of the log ``name`` in an open directory; it need not exist."""
        self.directory = directory
        self.name = name
        self._before = _identity(directory, name)

    def written(self) -> bool:
        """Whether the log is new or changed since."""
        now = _identity(self.directory, self.name)
        return now is not None and now != self._before

    def text(self) -> str:
        """The end of the log if the call has written it; else empty."""
        if not self.written():
            return ""
        try:
            fd = open_regular(self.name, dir_fd=self.directory)
        except OSError:
            return ""
        with open(fd, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - LARGEST_EXCERPT))
            return log.read(LARGEST_EXCERPT).decode(errors="replace")


def _identity(directory: int, name: str) -> tuple[int, int, int] | None:
    try:
        result = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    return result.st_ino, result.st_ctime_ns, result.st_size
