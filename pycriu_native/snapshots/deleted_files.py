"""Starts of a snapshot whose program has deleted files open or mapped, one after the other.

CRIU creates such a file for each restore, with a name that is the same in all restores of the
images, and unlinks it before the restore ends (``criu/files-reg.c``). Two restores at the same time
fail.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .._system.file_lock import unlock_and_close
from .waiting_lock import wait_for_lock

REMAPS = "remap-fpath.img"
"""The image with the deleted files; there is none if the program has none."""


@contextlib.contextmanager
def one_at_a_time(directory: Path, until: float | None) -> Iterator[None]:
    """Hold a lock of the directory in this context if the program has deleted files.

    ``DeadlineError`` at ``until`` (time.monotonic()).
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
