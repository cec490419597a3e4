"""The number of huge pages of this machine, which one run of the tests changes at a time."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def changed(setting: Path, number: int) -> Iterator[None]:
    """Set a number in sysfs, and restore it at the end.

    The lock is on this file: sysfs is the same in all mount namespaces of a network namespace.
    """
    with open(setting) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = setting.read_text()
        try:
            setting.write_text(str(number))
            yield
        finally:
            setting.write_text(before)
            fcntl.flock(lock, fcntl.LOCK_UN)  # a child may hold a copy of the descriptor
