"""Work of several calls that CRIU cannot do at the same time, one after the other."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from .._support.unpatched import sleep
from .._system.file_lock import lock, unlock_and_close
from ..errors import DeadlineError
from .uninterrupted import check_interrupted

PAUSE = 0.005
"""Seconds between two attempts to get the lock."""


@contextlib.contextmanager
def turn(directory: str | os.PathLike[str], until: float | None, other: str) -> Iterator[None]:
    """Hold the lock of a directory in this context.

    ``DeadlineError`` with the text ``other`` at ``until`` (time.monotonic()).
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while not lock(fd):
            check_interrupted()
            if until is not None and time.monotonic() >= until:
                raise DeadlineError(f"{other}, and the deadline passed")
            sleep(PAUSE)
        yield
    finally:
        unlock_and_close(fd)
