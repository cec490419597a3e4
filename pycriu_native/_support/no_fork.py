"""A lock that is held during imports on a call's thread: a fork on another thread waits for it.

A child has the forking thread only. A module that another thread was importing stays half imported
there, and its lock is never released: the child's first call would wait for it for ever.
"""

from __future__ import annotations

import os
import sys

from .light_typing import Any
from .unpatched import get_ident, original

no_fork: Any = original("_thread", "RLock")()
"""Held for an import."""

UNTIL_IMPORTED = 5.0
"""Seconds that a fork waits at most while no further module is loaded. An import can wait for the
forking thread: for a lock that another function before the fork has taken, such as that of
``logging``."""

_forking: set[int] = set()
"""The threads that fork, and have the lock for it."""


def _before() -> None:
    loaded = None
    while loaded != len(sys.modules):  # on a busy machine an import can take longer
        loaded = len(sys.modules)
        if no_fork.acquire(True, UNTIL_IMPORTED):
            _forking.add(get_ident())
            return


def _after() -> None:
    if get_ident() in _forking:
        _forking.discard(get_ident())
        no_fork.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
