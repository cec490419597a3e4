"""Features of this processor, and of Linux for its architecture."""

from __future__ import annotations

import os


def cpu_flags() -> frozenset[str]:
    """The names of ``/proc/cpuinfo``, such as ``avx`` or ``paca``; none if they cannot be read."""
    try:
        with open("/proc/cpuinfo", errors="replace") as file:  # read to the first processor's only
            for line in file:
                if line.startswith(("flags", "Features")):  # x86, Arm
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def authenticates_pointers() -> bool:
    """Whether this is an Arm processor with pointer authentication that the kernel uses."""
    return bool({"paca", "pacg"} & cpu_flags())


def can_track_memory() -> bool:
    """Whether Linux has soft-dirty tracking for this architecture (HAVE_ARCH_SOFT_DIRTY)."""
    return os.uname().machine.startswith(("x86", "i386", "i686", "s390", "ppc64"))
