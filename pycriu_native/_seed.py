"""A CRIU that has been loaded and grows workers: the Python side of ``native/seed.c``.

Most of what starting a worker costs is the loader's work: CRIU and some twenty libraries are
mapped and bound, three to four times what the worker needs until it waits for its request. A
seed has that behind it. What it grows is forked before CRIU's ``main()`` and is a child of ours, so
nothing of CRIU's own is shared: no configuration, no run id, no descriptor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from ._later import socket
from ._line import above_stdio, socket_pair
from ._process import OwnedProcess
from ._spawn import Manner, spawn
from .errors import ProgramError

IMAGE = os.path.join(os.path.dirname(__file__), "native", "seed.abi3.so")

UNTIL_LOADED = 2.0
UNTIL_GROWN = 5.0
"""Seconds that a seed gets for its first word, and for a worker."""

PATIENCE = 10.0
"""Seconds that a seed gets to end by itself."""

PRELOAD = "LD_PRELOAD"


class BarrenError(Exception):
    """This program grows no workers here, or not any more: each is to be started on its own."""


class Seed:
    """A ``criu`` that grows workers; owned.

    Everything but CRIU's own state they take over from it as it was when the seed was started:
    who uses them must know that nothing has changed since (``_surroundings.py``).
    """

    def __init__(self, program: str, env: Mapping[str, str], manner: Manner) -> None:
        """``manner`` is that of the workers. ``BarrenError``, ``ProgramError``, ``OSError``."""
        if PRELOAD in env or not os.path.exists(IMAGE):
            raise BarrenError
        ours, theirs = socket_pair()
        with theirs:
            try:
                chatter = above_stdio(os.memfd_create("criu-stderr", os.MFD_CLOEXEC))
                self.end = theirs.fileno()
                """The number of its socket, and of each worker's."""
                pid, pidfd = spawn(
                    (program, "swrk", str(self.end)),
                    env={**env, PRELOAD: IMAGE},
                    stdin=-1,
                    output=chatter,
                    keep=[self.end],
                    manner=manner,
                )
            except BaseException:
                ours.close()
                raise
        self._line = ours
        self._process = OwnedProcess(pid, pidfd, chatter)
        self._hear(UNTIL_LOADED)

    @property
    def pid(self) -> int:
        """The process that waits to be asked."""
        return self._process.pid

    def grow(self, end: int, output: int) -> tuple[int, int]:
        """A worker on this socket, with this standard output and error: its pid and a pidfd.

        ``BarrenError`` once there can be none; the seed is closed then.
        """
        try:
            socket.send_fds(self._line, [b"!"], [end, output], socket.MSG_NOSIGNAL)
        except OSError:
            self.close()
            raise BarrenError from None
        pid = self._hear(UNTIL_GROWN)
        try:
            return pid, os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended already, and somebody has reaped it
            raise ProgramError(f"pid {pid}, a worker, ended before it could be used") from None

    def _hear(self, seconds: float) -> int:
        self._line.settimeout(seconds)
        try:
            told = self._line.recv(16)
        except OSError:
            told = b""
        number = int.from_bytes(told, sys.byteorder, signed=True)
        if not told or number < 0:
            self.close()
            raise BarrenError
        return number

    def close(self) -> None:
        """End it; what it has grown stays. A second time does nothing."""
        self._line.close()
        self._process.reap(PATIENCE)  # not killed: what was grown just now is in its group still

    def forget(self) -> None:
        """In a forked child, whose parent has it."""
        self._line.close()
        self._process.close()
