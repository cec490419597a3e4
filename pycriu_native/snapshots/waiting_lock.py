"""A lock of a file that is waited for until a deadline or an interruption."""

from __future__ import annotations

import time

from .._support.unpatched import sleep
from .._system.file_lock import lock
from ..errors import DeadlineError
from .uninterrupted import check_interrupted

PAUSE = 0.002
"""Seconds between two attempts to get the lock."""


def wait_for_lock(fd: int, until: float | None) -> None:
    """Lock an open file. ``DeadlineError`` at ``until`` (time.monotonic()).

    Any user who can read the file can hold the lock.
    """
    while not lock(fd):
        check_interrupted()
        if until is not None and time.monotonic() >= until:
            raise DeadlineError("start: another process has locked the snapshot in this time")
        sleep(PAUSE)
