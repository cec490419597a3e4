"""LifetimeSockets: the process group of a worker is killed at the latest when this process ends."""

from __future__ import annotations

import fcntl
import os
import signal

from .._support.closing import Closing
from .._system.socket_pair import pair

F_SETSIG = 10
"""fcntl(2); Python's module has no name for it."""

PASSES = 3
"""How often the group is killed. The kernel sends SIGIO, or the signal that replaces it, to one
process of a group after the other, without a lock against forks: one pass can miss a process that
is forked meanwhile (seen on Linux 6.18, 9 of 1500); the next pass finds it."""


class LifetimeSockets(Closing):
    """Sockets of which a worker holds the other ends. Owned.

    (PR_SET_PDEATHSIG would not signal the children of the worker.)
    """

    def __init__(self) -> None:
        self._pairs = [pair() for _ in range(PASSES)]

    @property
    def ends(self) -> tuple[int, ...]:
        """The descriptors that the worker inherits."""
        return tuple(theirs.fileno() for _, theirs in self._pairs)

    def bind(self, pid: int) -> None:
        """From now on, let the kernel kill this process group at the latest when this process ends.

        A worker is bound at ``Connection.on_begin``, when CRIU has tested the kernel: if it is
        killed during the tests, it leaves temporary directories behind. Until then it notices the
        end of this process by its own socket.
        """
        for _, theirs in self._pairs:
            kill_on_event(theirs.fileno(), pid)

    def close(self) -> None:
        """Kill the group, if one is bound."""
        for ends in self._pairs:
            for end in ends:
                end.close()


def kill_on_event(sock: int, group: int) -> None:
    """Let the kernel kill a process group at each event of a socket, such as the end of its peer.

    See O_ASYNC in fcntl(2).
    """
    fcntl.fcntl(sock, fcntl.F_SETOWN, -group)
    fcntl.fcntl(sock, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | os.O_ASYNC)
