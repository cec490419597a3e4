"""A job that moves memory by mremap(2) to an address that had other contents before.

Called with a directory. When that has a file ``move``, the memory is moved; when it has a file
``finish``, the first bytes of all pages at the address are written to ``result``.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from pathlib import Path

TABLE = 2 * 2**20
"""Bytes of memory of one page table, which the kernel moves as a whole."""
SIZE = 2 * TABLE
MAYMOVE, FIXED = 1, 2
NOHUGEPAGE = 15

libc = ctypes.CDLL(None, use_errno=True)
for name in ("mmap", "mremap"):
    getattr(libc, name).restype = ctypes.c_void_p


def main(place: Path) -> None:
    size = ctypes.c_size_t
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    first = libc.mmap(None, size(4 * SIZE), 3, flags, -1, ctypes.c_long(0))
    first += -first % TABLE
    second = first + SIZE + TABLE
    libc.munmap(ctypes.c_void_p(first + SIZE), size(TABLE))
    for address, content in ((first, 1), (second, 2)):
        assert libc.madvise(ctypes.c_void_p(address), size(SIZE), NOHUGEPAGE) == 0
        ctypes.memset(address, content, SIZE)
    wait(place / "move")
    target = ctypes.c_void_p(second)
    moved = libc.mremap(ctypes.c_void_p(first), size(SIZE), size(SIZE), MAYMOVE | FIXED, target)
    assert moved == second
    (place / "moved").touch()
    wait(place / "finish")
    pages = ctypes.string_at(second, SIZE)[:: mmap.PAGESIZE]
    (place / "result").write_text(" ".join(map(str, sorted(set(pages)))))


def wait(path: Path) -> None:
    while not path.exists():
        time.sleep(0.05)


main(Path(sys.argv[1]))
