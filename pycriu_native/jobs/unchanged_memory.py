"""The check that an incremental dump has all changes of memory.

CRIU takes a page from the parent images if the kernel does not mark it as changed (soft-dirty).
mremap(2) can move pages without a mark, by moving a page table (seen with Linux 6.12): CRIU then
takes what the parent images have for the new address. So the page frames are recorded at each dump,
while the processes are frozen. A page that CRIU takes from the parent is unchanged only if it is
still in the same frame: another page that was not changed since then had another frame at that
time. The kernel also moves unchanged pages to other frames, for example into the swap; the caller
then makes a full dump.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .._integrity.image_files import DamagedError, ImageFiles
from .._integrity.pagemap import IN_PARENT, Runs
from .._support.unpatched import close
from .._system.page_frames import ENTRY, PAGE, frames, opened_pagemap
from .._system.process import status_of
from ..errors import CriuError


class MovedMemoryError(CriuError):
    """Pages of the parent images were moved, or may have been."""


class _Process:
    """The frames of the pages that the images of one process have."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._frames: list[bytes] = []

    def add(self, start: int, entries: bytes) -> None:
        """Add consecutive pages, in ascending order."""
        self._starts.append(start)
        self._frames.append(entries)

    def between(self, start: int, end: int) -> bytes | None:
        """The frames of a range; None if a page of it was not added."""
        index, result = bisect.bisect_right(self._starts, start) - 1, bytearray()
        while start < end:
            if not 0 <= index < len(self._starts):
                return None
            at = (start - self._starts[index]) // PAGE * ENTRY
            part = self._frames[index][at : at + (end - start) // PAGE * ENTRY]
            if start < self._starts[index] or not part:
                return None
            result += part
            start += len(part) // ENTRY * PAGE
            index += 1
        return bytes(result)


class FrameRecord:
    """The frames of all pages of the last dump."""

    def __init__(self) -> None:
        self._known: dict[str, _Process] = {}

    def update(self, images: Path, tree: Sequence[int]) -> None:
        """Record the frames of a dump of frozen processes, whose images are written.

        Raises ``MovedMemoryError`` if a page that the images have in their parent is not in the
        frame that it had at the previous dump, and ``OSError``.
        """
        known: dict[str, _Process] = {}
        at = os.open(images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files = ImageFiles(at)
            for pid in tree:
                number = status_of(pid).get("NSpid", str(pid)).split()[-1]
                if f"pagemap-{number}.img" in files.names:
                    known[number] = self._process(files, number, pid)
        except DamagedError as damaged:
            raise MovedMemoryError(str(damaged)) from None
        finally:
            close(at)
        self._known = known

    def _process(self, files: ImageFiles, number: str, pid: int) -> _Process:
        before, result = self._known.get(number), _Process()
        with opened_pagemap(pid) as pagemap:
            for start, end, in_parent in _spans(files.runs(f"pagemap-{number}.img")):
                now = frames(pagemap, start, end)
                for first, last in in_parent:
                    at, stop = ((each - start) // PAGE * ENTRY for each in (first, last))
                    if before is None or before.between(first, last) != now[at:stop]:
                        raise MovedMemoryError(f"memory of pid {number} at {first:#x} was moved")
                result.add(start, now)
        return result


def _spans(runs: Runs) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Start and end of consecutive runs, and of those among them that the parent has."""
    begin = until = 0
    in_parent: list[tuple[int, int]] = []
    for _, (start, end, flags, _) in runs.between(0, 2**64):
        if start != until:
            if until:
                yield begin, until, in_parent
            begin, in_parent = start, []
        if flags & IN_PARENT:
            in_parent.append((start, end))
        until = end
    if until:
        yield begin, until, in_parent
