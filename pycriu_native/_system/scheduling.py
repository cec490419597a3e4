"""Scheduling policies of threads (sched(7)), and which of them CRIU restores."""

from __future__ import annotations

import os

RESET_ON_FORK: int = os.SCHED_RESET_ON_FORK
"""A flag in a policy: children get the default policy."""
RESET_ON_FORK_SINCE = "4.0"
"""The first CRIU that restores this flag."""
_RESTORED = (os.SCHED_OTHER, os.SCHED_FIFO, os.SCHED_RR, os.SCHED_BATCH, os.SCHED_IDLE)


def is_restored(policy: int) -> bool:
    """Whether CRIU restores a policy, apart from the flag."""
    return policy & ~RESET_ON_FORK in _RESTORED
