"""Work in the network namespace of another process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .._native.ffi import checked, native


@contextlib.contextmanager
def in_network_of(pid: int) -> Iterator[bool]:
    """Move this thread into a process's network namespace; False if it is in it already."""
    with (
        open("/proc/thread-self/ns/net", "rb") as ours,
        open(f"/proc/{pid}/ns/net", "rb") as theirs,
    ):
        if os.path.sameopenfile(ours.fileno(), theirs.fileno()):
            yield False
            return
        _enter(theirs.fileno())
        try:
            yield True
        finally:
            _enter(ours.fileno())


def _enter(fd: int) -> None:
    checked(native.pn_enter_network_namespace(fd), "a network namespace cannot be entered")
