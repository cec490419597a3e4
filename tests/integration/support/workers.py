"""The CRIU workers of our calls, as a test finds them to do them harm."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .processes import children


def workers() -> list[int]:
    """Our children that are CRIU and take requests."""
    result = []
    for pid in children():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # It begins as "criu swrk", and gives itself a title like "criu: dump --rpc".
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"\0swrk\0" in words or b" --rpc" in words:
                result.append(pid)
    return result


def the_worker() -> int:
    """The one that there is."""
    [worker] = workers()
    return worker
