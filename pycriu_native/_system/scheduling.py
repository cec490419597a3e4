"""Scheduling policies of threads (sched(7))."""

from __future__ import annotations

import os

SAVED_POLICIES = (
    os.SCHED_OTHER,
    os.SCHED_FIFO,
    os.SCHED_RR,
    os.SCHED_BATCH,
    os.SCHED_IDLE,
)
"""The policies that CRIU restores."""


def policy_of(tid: int) -> int:
    """The policy of a thread. ``OSError``."""
    return os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
