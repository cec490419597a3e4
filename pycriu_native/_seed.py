"""A CRIU that has been loaded and grows workers: the Python side of ``native/seed.c``.

Most of what starting a worker costs is the loader's work: CRIU and some twenty libraries are
mapped and bound, three to four times what the worker needs until it waits for its request. A
seed has that behind it. What it grows is forked before CRIU's ``main()`` and is a child of ours, so
nothing of CRIU's own is shared: no configuration, no run id, no descriptor.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from ._ffi import native
from ._spawn import Manner
from ._typing import Any
from ._worker import start_worker
from .errors import ProgramError

IMAGE = os.path.join(os.path.dirname(__file__), "native", "seed.abi3.so")

UNTIL_LOADED = 2.0
"""Seconds that a seed gets for its first word."""

UNTIL_GROWN = 5000
"""Milliseconds that it gets for a worker."""

NO_INPUT = -1
"""What grows reads /dev/null: ours would be kept open by it."""

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
        preloading = {**env, PRELOAD: IMAGE}
        self._line = start_worker(program, preloading, NO_INPUT, manner=manner)
        self._asking = threading.Lock()
        self._line.sock.settimeout(UNTIL_LOADED)
        try:
            is_there = bool(self._line.sock.recv(16))  # another program waits for a request
        except OSError:
            is_there = False
        if not is_there:
            self.close()
            raise BarrenError

    @property
    def pid(self) -> int:
        """The process that waits to be asked."""
        return self._line.pid

    def grow(self, ends: Any) -> tuple[int, int]:
        """A worker with these ends (``struct pn_ends``): its pid and a pidfd.

        ``BarrenError`` once there can be none; the seed is closed then. Any thread may ask.
        """
        with self._asking:
            line = self._line.sock.fileno()
            pid = -1 if line < 0 else native.pn_grow(line, ends, UNTIL_GROWN)
            if pid < 0:
                self.close()
                raise BarrenError
        try:
            return pid, os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended already, and somebody has reaped it
            raise ProgramError(f"pid {pid}, a worker, ended before it could be used") from None

    def close(self) -> None:
        """End it; what it has grown stays. A second time does nothing."""
        self._line.reap()  # not killed at once: what was grown just now is in its group still

    def forget(self) -> None:
        """In a forked child, whose parent has it."""
        self._line.let_go()
