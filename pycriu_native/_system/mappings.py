"""The mappings of a process's memory, from ``/proc/PID/maps`` and ``smaps`` (proc_pid_maps(5))."""

from __future__ import annotations

import contextlib
import mmap
import os
from array import array
from collections.abc import Iterator

from .._support.frozen_dataclass import dataclass
from .._support.kernel_text import read_lines
from .._support.unpatched import closing
from .process import read_small


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping of a process's memory."""

    pid: int
    range: str
    rights: str
    device: str
    inode: int
    name: str

    @property
    def size(self) -> int:
        """Bytes of address space."""
        start, end = bounds(self.range)
        return end - start

    @property
    def link(self) -> str:
        """A path in /proc by which the mapped file can be opened."""
        start, end = bounds(self.range)
        return f"/proc/{self.pid}/map_files/{start:x}-{end:x}"

    @property
    def shared(self) -> bool:
        return self.rights[3] == "s"


def bounds(range: str) -> tuple[int, int]:
    """Start and end of a range of addresses, from the kernel's notation."""
    start, _, end = range.partition("-")
    return int(start, 16), int(end, 16)


_GUARD = 1 << 58
"""Bit of an entry of ``/proc/PID/pagemap``, from Linux 6.15 on (admin-guide/mm/pagemap)."""
_ENTRIES = 16384


def has_guard_pages(mapping: Mapping) -> bool:
    """Whether the first 16384 pages of a mapping have guard pages (``MADV_GUARD_INSTALL``).

    glibc from 2.42 on has one in the first page of the stack of each thread. False before Linux
    6.15. Raises ``OSError``.
    """
    first = bounds(mapping.range)[0] // mmap.PAGESIZE
    count = min(mapping.size // mmap.PAGESIZE, _ENTRIES)
    with closing(os.open(f"/proc/{mapping.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)) as file:
        entries = array("Q", os.pread(file, count * 8, first * 8))
    return any(entry & _GUARD for entry in entries)


def droppable_of(pid: int) -> list[tuple[int, int]]:
    """Start and end of each mapping with MAP_DROPPABLE; none before Linux 6.11.

    glibc from 2.41 on has some for getrandom(), once it was called. Slow, as :func:`details_of`.
    None are found if they cannot be read.
    """
    return [bounds(each) for each in ranges_with(pid, "dp")]


def is_kernel_memory(mapping: Mapping) -> bool:
    """Whether a mapping is memory of the kernel or of a device (VM_IO, VM_PFNMAP).

    Slow, as :func:`details_of`. False if that cannot be read.
    """
    return mapping.range in ranges_with(mapping.pid, "io", "pf")


def ranges_with(pid: int, *flags: str) -> list[str]:
    """The ranges of mappings with one of these ``VmFlags`` (proc_pid_smaps(5)); none if unreadable.

    Slow, as :func:`details_of`.
    """
    wanted = set(flags)
    with contextlib.suppress(OSError):
        return [
            range
            for range, field, value in details_of(pid)
            if field == "VmFlags" and not wanted.isdisjoint(value.split())
        ]
    return []


def mappings_of(pid: int) -> Iterator[Mapping]:
    """The mappings of a process. Raises ``OSError``."""
    for line in read_lines(f"/proc/{pid}/maps"):
        words = line.split(None, 5)
        name = words[5] if len(words) > 5 else ""
        yield Mapping(pid, words[0], words[1], words[3], int(words[4]), name)


def data_of(pid: int, program: str) -> Iterator[tuple[int, int]]:
    """Start and end of a program's data: its writable mappings and the anonymous ones after.

    The libraries precede the program where ``vm.legacy_va_layout`` or setarch(8) says so. Raises
    ``OSError``.
    """
    is_own = False
    for line in os.fsdecode(read_small(f"/proc/{pid}/maps")).splitlines():
        where, access, _, _, _, *path = line.split(None, 5)
        was_own, is_own = is_own, path == [program] or (is_own and not path)
        if was_own and not is_own:
            return
        if is_own and "w" in access:
            yield bounds(where)


def details_of(pid: int) -> Iterator[tuple[str, str, str]]:
    """Range, field and value of each line of ``smaps``. Slow: the kernel walks the page tables.

    Raises ``OSError``.
    """
    current = ""
    for line in read_lines(f"/proc/{pid}/smaps"):
        word, _, value = line.partition(" ")
        if word.endswith(":"):
            yield current, word[:-1], value.strip()
        else:
            current = word


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of memory by kind, such as ``Anonymous`` (``smaps_rollup``). ``OSError``."""
    lines = (line.split() for line in read_lines(f"/proc/{pid}/smaps_rollup")[1:])
    return {words[0][:-1]: kib(words[1]) for words in lines}


def kib(number: str) -> int:
    """Bytes of a number of KiB, which the kernel prints as ``12 kB``."""
    return int(number.split()[0]) * 1024
