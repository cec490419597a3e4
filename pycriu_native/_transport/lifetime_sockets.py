"""LifetimeSockets: the process group of a worker is killed at the latest when this process ends."""

from __future__ import annotations

from .._support.closing import Closing
from .._support.sockets import pair

PASSES = 3
"""How often the group is killed. The kernel sends SIGIO, or the signal that replaces it, to one
process of a group after the other, without a lock against forks: one pass can miss a process that
is forked meanwhile (seen on Linux 6.18, 9 of 1500); the next pass finds it."""


class LifetimeSockets(Closing):
    """Sockets of which a worker holds the other ends. Owned."""

    def __init__(self) -> None:
        self._pairs = [pair() for _ in range(PASSES)]

    @property
    def ends(self) -> tuple[int, ...]:
        """The descriptors for ``SpawnOptions.lifetime_sockets``."""
        return tuple(theirs.fileno() for _, theirs in self._pairs)

    def close(self) -> None:
        """Kill the group, if a worker was started."""
        for ends in self._pairs:
            for end in ends:
                end.close()
