"""Checks whether the caller is in the initial namespaces of the system."""

from __future__ import annotations

from ..._system.process_snapshot import link

_FIRST = {"pid": 4026531836, "user": 4026531837}
"""Inodes of the first namespaces of a system (``PROC_PID_INIT_INO`` and its like)."""


def in_first(kind: str) -> bool:
    """Whether the caller's namespace of a kind is that of the system."""
    return link(f"/proc/self/ns/{kind}") == f"{kind}:[{_FIRST[kind]}]"
