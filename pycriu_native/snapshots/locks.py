"""Locks of a snapshot's files that a start waits for until its deadline or an interruption."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from .._support.unpatched import sleep
from .._system.file_lock import lock, unlock_and_close
from ..errors import DeadlineError
from .uninterrupted import check_interrupted

PAUSE = 0.002
"""Seconds between two attempts to get the lock."""

REMAPS = "remap-fpath.img"
"""The image with the deleted files; there is none if the program has none."""


def wait_for_lock(fd: int, until: float | None) -> None:
    """Lock an open file. ``DeadlineError`` at ``until`` (time.monotonic()).

    Any user who can read the file can hold the lock.
    """
    while not lock(fd):
        check_interrupted()
        if until is not None and time.monotonic() >= until:
            raise DeadlineError("start: another process has locked the snapshot in this time")
        sleep(PAUSE)


@contextlib.contextmanager
def one_at_a_time(directory: Path, until: float | None) -> Iterator[None]:
    """Hold a lock of the directory in this context if the program has deleted files open or mapped.

    CRIU creates such a file for each restore, with a name that is the same in all restores of the
    images, and unlinks it before the restore ends (``criu/files-reg.c``). Two restores at the same
    time fail. ``DeadlineError`` at ``until`` (time.monotonic()).
    """
    if not (directory / REMAPS).exists():
        yield
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        wait_for_lock(fd, until)
        yield
    finally:
        unlock_and_close(fd)
