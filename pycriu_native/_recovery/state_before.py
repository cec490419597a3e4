"""The state before a dump that recovery compares with, read before CRIU receives the request."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from .._system.process import is_running
from ..options.criu_opts import StrPath


class StateBefore:
    """Time, process and freezer cgroup before a dump."""

    def __init__(self, pid: int, cgroup: StrPath | None) -> None:
        self.time = time.time()
        self.was_there = is_running(pid)
        self.freezer = Freezer(cgroup)


class Freezer:
    """A cgroup that CRIU freezes while it stops the tree, and its state before."""

    _FILES = (("cgroup.freeze", "1", "0"), ("freezer.state", "FROZEN", "THAWED"))

    def __init__(self, cgroup: StrPath | None) -> None:
        self._path: str | None = None
        self._before = ""
        for name, frozen, thawed in self._FILES if cgroup is not None else ():
            path = os.path.join(os.fsdecode(cgroup or ""), name)
            with contextlib.suppress(OSError), open(path) as file:
                self._before = thawed if file.read().strip() == thawed else frozen
                self._path = path
                return

    def put_back(self) -> Iterator[str]:
        """Restore the state; yields a message if that fails."""
        if self._path is None:
            return
        try:
            with open(self._path) as file:
                now = file.read().strip()
            if now != self._before:
                with open(self._path, "w") as file:
                    file.write(self._before)
        except OSError as error:
            yield f"{self._path} is not {self._before} as before ({error.strerror})"
