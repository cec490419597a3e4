"""The memory that is available: of the machine, and within the limits of cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .cgroups import cgroups_of
from .host import lines, number
from .mountinfo import hierarchy

FORMS = (
    ("cgroup2", "", "memory.max", "memory.current", "inactive_file"),
    ("cgroup", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Kind of hierarchy, controller, files of limit and usage, and the line of ``memory.stat`` with the
page cache that the kernel reclaims first."""


def memory_room() -> int:
    """Bytes that this process can allocate before the machine or one of its cgroups has no more.

    Includes memory that the kernel can reclaim, without swap.
    """
    available = (
        1024 * int(line.split()[1])
        for line in lines("/proc/meminfo")
        if line.startswith("MemAvailable:")
    )
    return max(0, min([*available, *_cgroups()], default=0))


def _cgroups() -> Iterator[int]:
    """The bytes that are available in each cgroup of this process with a limit."""
    try:
        own = cgroups_of("self")
    except OSError:
        return
    for kind, controller, limit, usage, cache in FORMS:
        top = hierarchy(kind, controller)
        if top is None or controller not in own:
            continue
        directory = os.path.normpath(top + own[controller])
        while directory.startswith(top):
            if most := number(f"{directory}/{limit}"):  # none, or "max"
                statistics = dict(line.split() for line in lines(f"{directory}/memory.stat"))
                yield most - number(f"{directory}/{usage}") + int(statistics.get(cache, 0))
            directory = os.path.dirname(directory)
