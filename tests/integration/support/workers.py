"""Finds the CRIU workers of this process, so that a test can kill or stop them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .processes import children


def workers() -> list[int]:
    """The children that are CRIU workers."""
    result = []
    for pid in children():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # Its title is "criu swrk" at first and then, for example, "criu: dump --rpc".
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"\0swrk\0" in words or b" --rpc" in words:
                result.append(pid)
    return result


def the_worker() -> int:
    """The only worker."""
    [worker] = workers()
    return worker
