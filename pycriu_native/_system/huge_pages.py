"""Huge pages (``admin-guide/mm/hugetlbpage.rst``): their sizes, and whether some are free."""

from __future__ import annotations

import contextlib
import mmap
import os

from .._native.ffi import native

SETTINGS = "/sys/kernel/mm/hugepages"
"""A directory for each size that the kernel supports."""
MAP_HUGETLB: int = native.pn_map_hugetlb
MAP_NORESERVE: int = native.pn_map_noreserve
SIZE_SHIFT = 26
"""Position of the size's logarithm in flags of mmap, memfd_create and shmget (``asm/mman.h``)."""


def setting_of(size: int) -> str:
    """The file with the number of huge pages of a size in bytes."""
    return f"{SETTINGS}/hugepages-{size >> 10}kB/nr_hugepages"


def sizes() -> frozenset[int]:
    """The sizes in bytes that the kernel supports."""
    with contextlib.suppress(OSError):
        names = os.listdir(SETTINGS)
        return frozenset(int(name[len("hugepages-") : -len("kB")]) << 10 for name in names)
    return frozenset()


def size_of(path: str) -> int:
    """The size in bytes of the huge pages of a file; 0 for a file without. ``OSError``."""
    size = os.statvfs(path).f_bsize
    return size if size in sizes() else 0


def size_in(flags: int) -> int:
    """The size in bytes that flags of mmap, memfd_create or shmget request; 0 for the default."""
    exponent = flags >> SIZE_SHIFT & 0x3F
    return 1 << exponent if exponent else 0


def can_map(size: int, total: int) -> bool:
    """Whether the kernel has free pages for a mapping of ``total`` bytes in pages of ``size``.

    The pages are reserved for a moment, as in CRIU, and not used. The default size for 0.
    """
    exponent = (size.bit_length() - 1) << SIZE_SHIFT if size else 0
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB | exponent
    try:
        mmap.mmap(-1, total, flags=flags).close()
    except (OSError, OverflowError):
        return False
    return True
