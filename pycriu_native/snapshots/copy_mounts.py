"""Calls in the mount namespace of a copy."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator

from .._native.ffi import native
from .._support.unpatched import Thread, close
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
                namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _enter(namespace)
                finally:
                    close(namespace)
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


def _enter(namespace: int) -> None:
    status = native.pn_enter_mount_namespace(namespace)
    if status:
        raise OSError(-status, f"setns: {os.strerror(-status)}")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"the mounts of a copy cannot be used: {error.strerror}"
        raise CriuError(message, errno=error.errno) from error
