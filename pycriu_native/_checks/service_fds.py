"""The descriptors that CRIU needs above a process's own on a restore (``criu/servicefd.c``)."""

from __future__ import annotations

import resource

from .._support.kernel_text import read_text
from .._system.capabilities import CAP_SYS_RESOURCE, has_capability

EACH_TABLE = 16
"""Service descriptors for each process that shares a table of descriptors, in CRIU 4.2; 15 before
4.0. One too many refuses no process that CRIU restores, but for one with that very limit."""
PAD = 16
BLOCK = 1024 // 8
"""Descriptors in the block by which the kernel lets a table grow, on 64-bit machines."""


def limit_here() -> int:
    """RLIMIT_NOFILE that a CRIU started by this process has.

    It raises its limit to ``fs.nr_open`` with CAP_SYS_RESOURCE; a worker has the hard limit.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    highest = int(read_text("/proc/sys/fs/nr_open"))
    return highest if hard == resource.RLIM_INFINITY or has_capability(CAP_SYS_RESOURCE) else hard


def needed(highest: int, sharing: int = 1) -> int:
    """The limit that a process whose highest descriptor this is needs; 0: any will do.

    ``sharing``: the number of processes that share the table.
    """
    bare = highest + EACH_TABLE * sharing + PAD
    return -(-bare // BLOCK) * BLOCK


def fits(highest: int, limit: int, sharing: int = 1) -> bool:
    """Whether CRIU finds room for its own descriptors, as ``choose_service_fd_base`` decides."""
    return needed(highest, sharing) <= limit
