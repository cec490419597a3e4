"""Work in the mount namespace of a copy."""

from __future__ import annotations

import os
from collections.abc import Callable

from .._native.ffi import native
from .._support.unpatched import Thread, close
from ..errors import CriuError


def in_mounts_of(pid: int, function: Callable[[], object]) -> None:
    """Call a function on a thread in the mount namespace of a copy, and raise what it raises.

    CRIU saves a process without its mounts only from inside of its mount namespace. It needs the
    /proc of its own pid namespace there: that covers the copy's meanwhile.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _checked(native.pn_enter_mount_namespace(namespace))
            finally:
                close(namespace)
            _checked(native.pn_cover_proc())
            try:
                function()
            finally:
                _checked(native.pn_uncover_proc())
        except BaseException as error:
            raised.append(error)

    thread = Thread(run, "snapshot of a copy")
    thread.start()
    try:
        thread.join()
    finally:
        thread.join()  # after an interrupt, too: the copy's /proc must come back
    if raised:
        raise raised[0]


def _checked(status: int) -> None:
    if status:
        why = os.strerror(-status)
        raise CriuError(f"the mounts of a copy cannot be used: {why}", errno=-status)
