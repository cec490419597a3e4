"""Scheduling policies of threads (sched(7)), and which of them CRIU restores."""

from __future__ import annotations

import os
from collections.abc import Callable

_RESTORED = (os.SCHED_OTHER, os.SCHED_FIFO, os.SCHED_RR, os.SCHED_BATCH, os.SCHED_IDLE)
_RESET_ON_FORK: int = os.SCHED_RESET_ON_FORK
"""A flag in a policy: children get the default policy."""
_RESET_ON_FORK_SINCE = "4.0"
"""The first CRIU that restores this flag."""


def is_restored(policy: int, is_older_than: Callable[[str], bool]) -> bool:
    """Whether CRIU restores a policy. ``is_older_than``: whether it is older than a release."""
    if policy & _RESET_ON_FORK and is_older_than(_RESET_ON_FORK_SINCE):
        return False
    return policy & ~_RESET_ON_FORK in _RESTORED
