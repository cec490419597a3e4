"""Results of reading the images of a set, kept while no file of the set changes.

A program that restores one set many times reads its images once. The names, inodes, sizes and times
of the files show a change. A file that has changed a moment ago could change again within the same
tick of the clock of its file system: nothing is kept then.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Hashable

from .._support.light_typing import Generic, TypeVar
from .._support.unpatched import close
from .dump_marker import DEEPEST, is_of_set

MOST = 32
"""Sets whose results are kept."""

TICK_NS = 100_000_000
"""Nanoseconds within which two changes may have the same time."""

File = tuple[str, int, int, int, int]
"""Name, inode, size in bytes, times of the last changes of the file and of its contents."""

Result = TypeVar("Result")


class SetState:
    """The files of a set, as one call finds them: they are listed once for all of its results."""

    def __init__(self, directory: int) -> None:
        """``directory`` is the caller's, and is open while this object is used."""
        self.directory = directory
        self.files: list[File] | None = None
        """None: they cannot be listed."""
        self.place: tuple[int, int] | None = None
        """Device and inode of the directory."""
        self.listed = time.time_ns()
        with contextlib.suppress(OSError):
            status = os.fstat(directory)
            self.place = status.st_dev, status.st_ino
            self.files = files_of(directory)


class Unchanged(Generic[Result]):
    """Results by set. May be used on any thread."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[list[File], Result]] = {}

    def result(self, state: SetState, key: Hashable, make: Callable[[], Result]) -> Result:
        """The result of ``make()``, of this call or of an earlier one with the same ``key``."""
        files = state.files
        if files is None:
            return make()
        key = (state.place, key)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == files:
            return kept[1]
        result = make()
        newest = max((max(file[3:]) for file in files), default=0)
        if newest + TICK_NS < state.listed:
            while len(self._kept) >= MOST:
                # Another thread may do the same.
                with contextlib.suppress(StopIteration, KeyError, RuntimeError):
                    del self._kept[next(iter(self._kept))]
            self._kept[key] = files, result
        return result


def files_of(directory: int) -> list[File]:
    """The files of a set and of its parents, those of CRIU and of this library. ``OSError``."""
    result: list[File] = []
    with contextlib.ExitStack() as opened:
        at = directory
        for _ in range(DEEPEST):
            names = os.listdir(at)
            for name in names:
                if is_of_set(name):
                    status = os.stat(name, dir_fd=at, follow_symlinks=False)
                    times = status.st_ctime_ns, status.st_mtime_ns
                    result.append((name, status.st_ino, status.st_size, *times))
            if "parent" not in names:
                return result
            at = os.open("parent", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            opened.callback(close, at)
    return result
