"""CRIU's notifications, and the hook that receives them."""

from __future__ import annotations

from collections.abc import Callable

from .._support.frozen_dataclass import dataclass
from ..enums import Notify, Verb


@dataclass(frozen=True, slots=True)
class Notification:
    """A notification of CRIU during a call; :class:`Notify` documents the frozen processes."""

    action: Notify | str
    """The action; a name that is unknown to this release is a string."""
    verb: Verb
    """The verb of the call."""
    pid: int | None = None
    """The root task's pid; only with ``setup-namespaces`` and ``post-restore``."""
    fd: int | None = None
    """The descriptor that CRIU passes (``orphan-pts-master``); the hook closes it."""


Hook = Callable[[Notification], object]
"""``on_notify``: called with each notification; an exception refuses it.

The return value is used for ``Notify.QUERY_EXT_FILES`` only: more names for ``external``, or None.
"""
