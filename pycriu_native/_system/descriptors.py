"""Copies of another process's descriptors (``pidfd_getfd``, kernel 5.6)."""

from __future__ import annotations

import contextlib
import os

from .._native.ffi import native
from .._support.kernel_text import read_lines


def descriptor_info(pid: int | str, fd: int) -> dict[str, list[str]]:
    """The lines of a descriptor's fdinfo by their first word, which several lines can share.

    Raises ``OSError``.
    """
    result: dict[str, list[str]] = {}
    for line in read_lines(f"/proc/{pid}/fdinfo/{fd}"):
        word, *rest = line.split(None, 1)
        result.setdefault(word.rstrip(":"), []).append(rest[0] if rest else "")
    return result


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
