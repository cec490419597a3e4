"""Pipes of the size that CRIU needs to serve pages without CAP_SYS_RESOURCE: fs.pipe-max-size.

The setting is the machine's, and several runs may need it at the same time. A run holds a shared
lock while it needs the setting, and restores a raised setting under an exclusive lock. The lock is
on the file of the user namespace, which is the same for all processes that can write the setting,
independent of their other namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

SETTING = Path("/proc/sys/fs/pipe-max-size")
NEEDED = 2**22
CAP_SYS_RESOURCE = 24

_before: str | None = None
"""The original value of the setting, if this run has raised it."""


def why_not() -> str:
    """The reason why such pipes are impossible here, or an empty string."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    size = SETTING.read_text()
    if effective >> CAP_SYS_RESOURCE & 1 or int(size) >= NEEDED:
        return ""
    try:
        SETTING.write_text(size)
    except OSError as error:
        return f"without CAP_SYS_RESOURCE, fs.pipe-max-size would have to be raised: {error}"
    return ""


@contextlib.contextmanager
def _locked(how: int) -> Iterator[None]:
    with open("/proc/self/ns/user") as lock:
        fcntl.flock(lock, how)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a child may hold a copy of the descriptor


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Allow such pipes while the context lasts."""
    global _before
    with _locked(fcntl.LOCK_SH):
        result = SETTING.read_text()
        if int(result) < NEEDED:
            _before = result
            SETTING.write_text(str(NEEDED))
        yield


def restore_setting() -> None:
    """Restore the setting if this run has raised it and no run needs it."""
    if _before is not None:
        with _locked(fcntl.LOCK_EX):
            SETTING.write_text(_before)
