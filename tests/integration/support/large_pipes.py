"""Pipes of the size that CRIU needs to serve pages without CAP_SYS_RESOURCE: fs.pipe-max-size.

The setting is the machine's, and other runs of these tests may need it at the same time. Whoever
needs it holds a shared lock meanwhile, and a run that has raised it sets it back under an exclusive
one. What is locked is the user namespace, the same file for all who can write the setting, whatever
their other namespaces are.
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
"""The setting that this run has found and raised."""


def why_not() -> str:
    """Why there can be no such pipes here, or an empty string."""
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
    """They can be made while the context lasts."""
    global _before
    with _locked(fcntl.LOCK_SH):
        result = SETTING.read_text()
        if int(result) < NEEDED:
            _before = result
            SETTING.write_text(str(NEEDED))
        yield


def restore_setting() -> None:
    """Set back what this run has raised, when nobody needs it."""
    if _before is not None:
        with _locked(fcntl.LOCK_EX):
            SETTING.write_text(_before)
