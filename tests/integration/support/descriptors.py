"""Descriptors of other processes, as a container's runtime gets and gives them."""

from __future__ import annotations

import ctypes
import os

PIDFD_GETFD = 438
"""The number of pidfd_getfd(2), which is the same on all architectures."""


def taken_from(pid: int, fd: int) -> int:
    """Our own descriptor for what another process has open as ``fd``."""
    pidfd = os.pidfd_open(pid)
    try:
        ours = int(ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, fd, 0))
    finally:
        os.close(pidfd)
    if ours < 0:
        raise OSError(ctypes.get_errno(), f"pidfd_getfd of {fd} of {pid}")
    return ours
