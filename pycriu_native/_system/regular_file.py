"""Opens, reads and writes files in directories that are not trusted: regular files only."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from .._support.unpatched import close, closing

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


def identity_of(path: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    """Device, inode and last change of a file; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def read_regular(path: str | os.PathLike[str], most: int, *, dir_fd: int | None = None) -> bytes:
    """At most so many bytes of a regular file. Raises ``OSError`` as :func:`open_regular`."""
    with closing(open_regular(path, dir_fd=dir_fd)) as fd:
        return os.read(fd, min(most, os.fstat(fd).st_size))


def create_regular(name: str | os.PathLike[str], *, dir_fd: int | None = None) -> int:
    """Create a file of mode 0600 and return its descriptor. ``FileExistsError`` if it exists."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=dir_fd)


def replace_file(directory: int, name: str, *parts: bytes | memoryview, sync: bool = False) -> None:
    """Write a file of mode 0600, which gets its name when it is complete. ``OSError``.

    ``parts`` are its contents. ``sync``: it is synced to disk before it gets its name.
    """
    partial = f"{name}.partial"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=directory)  # of a call that was killed
    try:
        with open(create_regular(partial, dir_fd=directory), "wb") as file:
            file.writelines(parts)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=directory)
        raise


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
