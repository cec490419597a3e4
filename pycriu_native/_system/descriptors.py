"""Copies of another process's descriptors (``pidfd_getfd``, kernel 5.6)."""

from __future__ import annotations

import contextlib
import os

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
