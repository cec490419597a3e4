"""Calls in the mount namespace of a copy."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

from .._native.ffi import checked, native
from .._support.unpatched import Thread
from .._system.mounts import detach, mount_proc
from ..errors import CriuError


def in_mounts_of(pid: int, function: Callable[[], object]) -> None:
    """Call a function on a thread in the mount namespace of a copy; raises its exception.

    It must not be interrupted (``uninterrupted.py``): /proc has to be unmounted.

    CRIU can save a process without its mounts only from inside its mount namespace. CRIU needs the
    /proc of its own pid namespace, which is mounted over that of the copy during the call.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            with _errors():
                with open(f"/proc/{pid}/ns/mnt", "rb") as namespace:
                    checked(native.pn_enter_mount_namespace(namespace.fileno()), "setns")
                mount_proc()
            try:
                function()
            finally:
                with _errors():
                    detach("/proc")
        except BaseException as error:
            raised.append(error)

    # Without daemon, threading would create an object for the present thread, which it lacks.
    thread = Thread(contextvars.copy_context().run, "snapshot of a copy", (run,), daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"the mounts of a copy cannot be used: {error.strerror}"
        raise CriuError(message, errno=error.errno) from error
