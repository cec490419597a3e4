"""A lock that is held during imports on a call's thread: a fork on another thread waits for it.

A child has the forking thread only. A module that another thread was importing stays half imported
there, and its lock is never released: the child's first call would wait for it for ever.
"""

from __future__ import annotations

import os

from .light_typing import Any
from .unpatched import original

no_fork: Any = original("_thread", "RLock")()
"""Held for an import; nothing else is waited for meanwhile."""

os.register_at_fork(
    before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=no_fork.release
)
