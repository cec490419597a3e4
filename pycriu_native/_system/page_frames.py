"""The page frames of a process's memory, from ``/proc/PID/pagemap`` (admin-guide/mm/pagemap)."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Iterator

from .mappings import mappings_of

PAGE = mmap.PAGESIZE
ENTRY = 8
"""Bytes of an entry, which describes one page."""

_FRAME, _SWAPPED, _PRESENT = (1 << 55) - 1, 1 << 62, 1 << 63
_MASK = (_FRAME | _SWAPPED | _PRESENT).to_bytes(ENTRY, sys.byteorder)


@contextlib.contextmanager
def opened_pagemap(pid: int) -> Iterator[int]:
    """A descriptor of a process's page map. Raises ``OSError``."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        yield file.fileno()


def frames(pagemap: int, start: int, end: int) -> bytes:
    """An entry for each page: its frame or its place in the swap, without other flags.

    Without CAP_SYS_ADMIN in the first user namespace, all frames are 0. Raises ``OSError``.
    """
    count = (end - start) // PAGE
    entries = os.pread(pagemap, count * ENTRY, start // PAGE * ENTRY)
    mask = int.from_bytes(_MASK * count, sys.byteorder)
    return (int.from_bytes(entries, sys.byteorder) & mask).to_bytes(count * ENTRY, sys.byteorder)


def are_visible() -> bool:
    """Whether the kernel shows this process the frames of its own memory."""
    with contextlib.suppress(OSError), opened_pagemap(os.getpid()) as pagemap:
        for mapping in mappings_of(os.getpid()):
            if mapping.name == "[stack]":
                start, _, end = mapping.range.partition("-")
                words = memoryview(frames(pagemap, int(start, 16), int(end, 16))).cast("Q")
                return any(word & _FRAME for word in words if word & _PRESENT)
    return False
