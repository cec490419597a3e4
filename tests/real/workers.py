"""The CRIU workers of our calls, as a test finds them to do them harm."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .processes import children


def workers() -> list[int]:
    """Our children that are CRIU."""
    found = []
    for pid in children():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().startswith("criu"):
                found.append(pid)
    return found


def the_worker() -> int:
    """The one that there is."""
    [worker] = workers()
    return worker
