"""CRIU's notifications, and the hook that receives them."""

from __future__ import annotations

from collections.abc import Callable

from .._support.frozen_dataclass import dataclass
from ..enums import Notify, Verb


@dataclass(frozen=True, slots=True)
class Notification:
    """Something that CRIU says while it works; what is frozen then, :class:`Notify` tells."""

    action: Notify | str
    """Which; a name that this release does not know arrives as it is."""
    verb: Verb
    """The call that it belongs to."""
    pid: int | None = None
    """The root task's pid: with ``setup-namespaces`` and ``post-restore`` only."""
    fd: int | None = None
    """The descriptor that came along (``orphan-pts-master``); it belongs to the hook."""


Hook = Callable[[Notification], object]
"""What ``on_notify`` is: called with each notification; raising refuses it.

What it returns counts for ``Notify.QUERY_EXT_FILES`` alone: more names for ``external``, or None.
"""
