"""The page frames of a process's memory, from ``/proc/PID/pagemap`` (admin-guide/mm/pagemap)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import sys
from array import array
from collections.abc import Callable, Iterator

from .._native.ffi import ffi
from .host import number
from .mappings import bounds, mappings_of

PAGE = mmap.PAGESIZE
ENTRY = 8
"""Bytes of an entry, which describes one page."""
TABLE = 2 * 2**20
"""Bytes of memory of the smallest page table that Linux moves as a whole."""

EMPTY = bytes(TABLE // PAGE * ENTRY)
"""The entries of a page table without pages."""
CHANGED = 1 << 55
"""Set in the entry of a page that was written since the last reset (soft-dirty)."""
_FRAME, _OF_FILE, _SWAPPED, _PRESENT = (1 << 55) - 1, 1 << 61, 1 << 62, 1 << 63
_PAGEMAP_SCAN, _IS_PRESENT, _IS_SWAPPED = 0xC0606610, 1 << 3, 1 << 4
"""``linux/fs.h`` (Linux 6.7). A process reserves up to terabytes of address space without pages."""
_MASK = int.from_bytes(
    (_FRAME | _SWAPPED | _PRESENT).to_bytes(ENTRY, sys.byteorder) * (TABLE // PAGE), sys.byteorder
)


def page_tables(pid: int, check: Callable[[], object]) -> Iterator[tuple[int, bytes]]:
    """The address of each page table of private memory, and the entries of its pages.

    The entry of a page that has the content of a file is 0. Without CAP_SYS_ADMIN in the first user
    namespace, all frames are 0. ``check`` is called for each table and may raise. Raises
    ``OSError``.
    """
    table, entries = -1, bytearray()
    for address, part in _parts(pid, check):
        if address - address % TABLE != table:
            if table >= 0:
                yield table, bytes(entries)
            table, entries = address - address % TABLE, bytearray(EMPTY)
        first = address % TABLE // PAGE * ENTRY
        entries[first : first + len(part)] = part
    if table >= 0:
        yield table, bytes(entries)


def _parts(pid: int, check: Callable[[], object]) -> Iterator[tuple[int, bytes]]:
    """Addresses and entries of the parts of mappings that are in one page table, without holes."""
    mappings = [each for each in mappings_of(pid) if not each.shared]
    if not mappings:
        return  # a zombie
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for mapping in mappings:
            if mapping.name.startswith("[v"):
                continue  # [vdso] and others are pages of the kernel
            start, end = bounds(mapping.range)
            for table in _tables(pagemap.fileno(), start, end):
                check()
                first, last = max(start, table), min(end, table + TABLE)
                size = (last - first) // PAGE * ENTRY
                part = os.pread(pagemap.fileno(), size, first // PAGE * ENTRY)
                if len(part) < size:
                    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
                if part == EMPTY:
                    continue
                if mapping.inode:
                    words = array("Q", part)
                    part = array("Q", [0 if each & _OF_FILE else each for each in words]).tobytes()
                yield first, part


def _tables(pagemap: int, start: int, end: int) -> Iterator[int]:
    """The addresses of the page tables with pages in a range; before Linux 6.7 those of all."""
    while start < end:
        first = _first_page(pagemap, start, end)
        if first < end:
            yield first - first % TABLE
        start = first - first % TABLE + TABLE


def _first_page(pagemap: int, start: int, end: int) -> int:
    """The address of the first page in a range that is in memory or in the swap.

    ``end`` if there is none; before Linux 6.7 ``start``.
    """
    found = array("Q", (end, end, 0))  # struct page_region
    kinds = _IS_PRESENT | _IS_SWAPPED
    scan = array("Q", (96, 0, start, end, 0, found.buffer_info()[0], 1, 1, 0, 0, kinds, kinds))
    try:
        fcntl.ioctl(pagemap, _PAGEMAP_SCAN, scan)
    except OSError:
        return start
    return found[0]


def frames_of(entries: bytes) -> bytes:
    """The frame of each page of a page table, or its place in the swap, without other flags."""
    frames = int.from_bytes(entries, sys.byteorder) & _MASK
    return frames.to_bytes(len(EMPTY), sys.byteorder)


def zero_frame() -> int:
    """The frame that Linux maps where memory was only read. Raises ``OSError``."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, PAGE, flags=flags, prot=mmap.PROT_READ) as page:
        assert page[0] == 0  # now it is mapped
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(page)))
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            entry = os.pread(pagemap.fileno(), ENTRY, address // PAGE * ENTRY)
    return int.from_bytes(entry, sys.byteorder) & (_FRAME | _PRESENT)


def are_visible() -> bool:
    """Whether the kernel shows page frames to this process."""
    with contextlib.suppress(OSError):
        return bool(zero_frame() & _FRAME)
    return False


def are_merged() -> bool:
    """Whether the kernel merges equal pages, or did (KSM). It then loses marks of changes."""
    names = ("run", "full_scans", "pages_shared")
    counts = [number(f"/sys/kernel/mm/ksm/{name}") for name in names]
    return any(counts) or not os.path.isdir("/sys/kernel/mm")
