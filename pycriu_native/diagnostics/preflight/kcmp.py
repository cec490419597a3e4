"""kcmp(2): whether two processes share something."""

from __future__ import annotations

import os

from ..._system.process_snapshot import Descriptor, libc

SYS_KCMP = 312 if os.uname().machine == "x86_64" else 272
FILE, EPOLL_TFD = 0, 7
"""Types of what is compared (``linux/kcmp.h``)."""


def kcmp(one: int, other: int, kind: int, first: object = 0, second: object = 0) -> int:
    """0: equal. 1 to 3: different. Negative: an error, in ``ctypes.get_errno()``."""
    return int(libc.syscall(SYS_KCMP, one, other, kind, first, second))


def is_same_file(one: Descriptor, other: Descriptor) -> bool:
    """Whether two descriptors are the same open file."""
    return kcmp(one.pid, other.pid, FILE, one.number, other.number) == 0
