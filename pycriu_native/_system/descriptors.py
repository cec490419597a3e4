"""Copies of another process's descriptors (``pidfd_getfd``, kernel 5.6)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .._native.ffi import native


def descriptors_of(pid: int, kind: str) -> list[int]:
    """Copies of another process's descriptors whose file begins so: ``socket:``, for one."""
    result: list[int] = []
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith(kind):
                    continue
                fd = native.pn_fd_of(pidfd, int(name))
                if fd < 0:
                    raise OSError(-fd, "pidfd_getfd")
                result.append(fd)
    except BaseException:
        for fd in result:
            os.close(fd)
        raise
    finally:
        os.close(pidfd)
    return result


@contextlib.contextmanager
def copied(pid: int, number: int) -> Iterator[int]:
    """A copy of one descriptor of another process, which shares its open file; closed at the end.

    Raises ``OSError``: the descriptor or the process is gone, or the caller may not trace it.
    """
    pidfd = os.pidfd_open(pid)
    try:
        fd = native.pn_fd_of(pidfd, number)
    finally:
        os.close(pidfd)
    if fd < 0:
        raise OSError(-fd, "pidfd_getfd")
    try:
        yield fd
    finally:
        os.close(fd)
