"""Descriptors that a restore needs above those of a process (``criu/servicefd.c``)."""

from __future__ import annotations

import resource

from .._support.kernel_text import read_text
from .._system.capabilities import CAP_SYS_RESOURCE, has_capability

EACH_TABLE = 16
"""Service descriptors for each process that shares a descriptor table, in CRIU 4.2; 15 before 4.0.
The difference matters only for a process exactly at its limit."""
PAD = 16
BLOCK = 1024 // 8
"""Descriptors by which the kernel enlarges a table, on 64-bit machines."""


def limit_here() -> int:
    """RLIMIT_NOFILE of a CRIU started by this process.

    With CAP_SYS_RESOURCE, CRIU raises it to ``fs.nr_open``; else a worker has the hard limit.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    highest = int(read_text("/proc/sys/fs/nr_open"))
    return highest if hard == resource.RLIM_INFINITY or has_capability(CAP_SYS_RESOURCE) else hard


def needed(highest: int, sharing: int = 1) -> int:
    """The limit that the restore of a process with this highest descriptor needs; 0: any.

    ``sharing``: the number of processes that share the table.
    """
    bare = highest + EACH_TABLE * sharing + PAD
    return -(-bare // BLOCK) * BLOCK


def fits(highest: int, limit: int, sharing: int = 1) -> bool:
    """Whether CRIU's own descriptors fit below the limit (``choose_service_fd_base``)."""
    return needed(highest, sharing) <= limit
