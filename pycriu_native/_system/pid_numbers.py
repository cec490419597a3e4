"""Numbers of processes and threads that no process has any more, and that are in use nevertheless.

Linux (6.18) takes a thread out of ``/proc`` and lets its parent reap the process before it
frees the number (``kernel/exit.c``, ``release_task``). On a busy machine that takes a third of a
second, and a restore meanwhile finds the number in use.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable

from .._support.unpatched import closing, sleep
from .process_tree import holders

UNTIL_FREED = 5.0
"""Seconds to wait for the kernel."""

UNTIL_READ = 0.02
"""Seconds after which the sessions and process groups are read, which have numbers as well."""


def wait_until_freed(numbers: Iterable[int]) -> None:
    """Wait until the kernel has freed those of these numbers that no process has."""
    with closing(os.eventfd(0, os.EFD_CLOEXEC)) as probe:
        begun = time.monotonic()
        read = False
        remaining = list(numbers)
        while remaining := [
            each
            for each in remaining
            if _is_taken(probe, each) and not os.path.exists(f"/proc/{each}")
        ]:
            waited = time.monotonic() - begun
            if waited > UNTIL_FREED:
                return
            if waited > UNTIL_READ and not read:
                read = True
                held = holders()
                remaining = [each for each in remaining if each not in held]
            sleep(0.001)


def _is_taken(probe: int, number: int) -> bool:
    """Whether a new process cannot get this number: F_SETOWN looks for nothing else."""
    try:
        fcntl.fcntl(probe, fcntl.F_SETOWN, number)
    except ProcessLookupError:
        return False
    return True
