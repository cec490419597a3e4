"""Pages: which of them an image set has, in which file, and reading them through its parents.

A pagemap lists runs of pages. A run is stored in the ``pages`` file of its own set, one after
the other; or in a parent's; or is lazy and was to be asked for. What no run names was never
written by the process: zeros, or the mapped file as it is.
"""

from __future__ import annotations

import bisect
import itertools
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from ..errors import ImagesError
from ._reader import ImageFile, damaged, expect, open_file
from ._schema import message

PAGE = mmap.PAGESIZE
"""Bytes. The images do not tell the page size; it is taken to be that of this host."""
IN_PARENT, LAZY, PRESENT, ALIGNED = 1, 2, 4, 8
CHUNK = 2**20
"""Bytes that are read at once."""

Run = tuple[int, int, int, int]
"""Start, end, flags, and offset in the pages file."""


@dataclass(slots=True)
class Counts:
    """Bytes of memory, by where they are."""

    stored: int = 0
    in_parent: int = 0
    lazy: int = 0


class _Sums:
    """How many bytes of each sort are below an address, so that a range is a difference."""

    def __init__(self, runs: Sequence[Run], starts: Sequence[int]) -> None:
        self._runs, self._starts = runs, starts
        sort_of = {flags: _sort(flags) for flags in {run[2] for run in runs}}
        self._sorts = sort_of
        self._below: list[tuple[int, list[int]]] = []
        """For each sort that occurs: the bytes below each run."""
        for wanted in sorted(set(sort_of.values()) - {_NEITHER}):
            mine = {flags for flags, sort in sort_of.items() if sort == wanted}
            sizes = [run[1] - run[0] if run[2] in mine else 0 for run in runs]
            self._below.append((wanted, list(itertools.accumulate(sizes, initial=0))))

    def between(self, start: int, end: int) -> Counts:
        """The bytes of a range."""
        low, high = self._at(start), self._at(end)
        return Counts(high[0] - low[0], high[1] - low[1], high[2] - low[2])

    def _at(self, address: int) -> list[int]:
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return [0, 0, 0]
        run = self._runs[index]
        found = [0, 0, 0]
        for sort, below in self._below:
            found[sort] = below[index]
        sort = self._sorts[run[2]]
        if sort != _NEITHER:
            found[sort] += min(run[1], address) - run[0]
        return found


_NEITHER = 3


def _sort(flags: int) -> int:
    """0 stored, 1 in a parent, 2 lazy: what is stored is not lazy, whatever else it could be."""
    if flags & PRESENT:
        return 0
    return 1 if flags & IN_PARENT else 2 if flags & LAZY else _NEITHER


@dataclass(slots=True)
class PageMap:
    """The runs of one pagemap, in ascending order, and the file that they point into."""

    name: str
    """``pagemap-4242.img``."""
    directory: str
    pages_id: int
    runs: list[Run]
    size: int
    """Bytes that the pages file must have."""
    blocks: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    """Of compressed runs, by address: bytes of a whole block, and the size of each as stored."""
    starts: list[int] = field(default_factory=list)

    @property
    def pages(self) -> str:
        """The path of the file with the pages."""
        return os.path.join(self.directory, f"pages-{self.pages_id}.img")

    def between(self, start: int, end: int) -> Iterator[Run]:
        """The runs that touch a range of addresses."""
        first = max(bisect.bisect_right(self.starts, start) - 1, 0)
        for index in range(first, len(self.runs)):
            run = self.runs[index]
            if run[0] >= end:
                return
            if run[1] > start:
                yield run


def load_map(directory: str, name: str) -> PageMap:
    """Read a pagemap; raises ``ImagesError`` for one that is missing or no pagemap."""
    path = os.path.join(directory, name)
    with expect(path, "PAGEMAP") as file:
        if file.start == file.size:
            raise damaged(path, file.start, "there is no pagemap_head")
        head, at = file.parse(file.start, "pagemap_head")
        found = PageMap(name, directory, head.pages_id, [], 0)
        _read_runs(file, at, found)
    found.starts = [run[0] for run in found.runs]
    return found


def _read_runs(file: ImageFile, at: int, found: PageMap) -> None:
    """The hot loop: a large process has hundreds of thousands of runs.

    The only required fields are looked at here, so there is no other check of each message.
    """
    append = found.runs.append
    parse = message("pagemap_entry").FromString
    offset = last = 0
    for begin, data in file.frames(at):
        try:
            entry = parse(data)
        except DecodeError:
            file.read(begin, data, "pagemap_entry")  # says it
            raise
        start = entry.vaddr
        pages = entry.nr_pages or entry.compat_nr_pages
        flags = entry.flags
        if entry.in_parent:
            flags |= IN_PARENT
        elif not flags and not entry.HasField("flags"):
            flags = PRESENT
        end = start + pages * PAGE
        if start < last or end > 2**64 or start % PAGE:
            raise damaged(file.path, begin, f"{pages} pages at {start:#x} cannot come here")
        last = end
        here = offset
        if flags & PRESENT:
            if flags & ALIGNED:
                here = offset = -(-offset // PAGE) * PAGE
            if entry.HasField("blocks"):
                offset += _blocks(file, begin, entry.blocks, pages, found, start)
            else:
                offset += end - start
        append((start, end, flags, here))
    found.size = offset


def _blocks(
    file: ImageFile, begin: int, blocks: Any, pages: int, found: PageMap, start: int
) -> int:
    """Remember how a compressed run is made up; gives the bytes that it takes."""
    whole = blocks.pages_per_block * PAGE
    sizes = tuple(blocks.block_sizes)
    if not 0 < whole <= 4 * 2**20 or len(sizes) != -(-pages * PAGE // whole):
        raise damaged(file.path, begin, f"{len(sizes)} blocks cannot hold {pages} pages")
    if max(sizes, default=0) > whole:
        raise damaged(file.path, begin, "a compressed block is larger than what it holds")
    found.blocks[start] = (whole, sizes)
    return sum(sizes)


class Layers:
    """The pagemaps of one memory, the newest first; each looks into the next for its parents."""

    def __init__(self, directories: Sequence[str], name: str) -> None:
        self.name = name
        self._directories = directories
        self._maps: list[PageMap | None] = []
        self._sums: _Sums | None = None

    def level(self, depth: int) -> PageMap | None:
        """The pagemap of the set itself (0), of its parent (1), and so on; None past the end."""
        while len(self._maps) <= depth < len(self._directories):
            directory = self._directories[len(self._maps)]
            exists = os.path.lexists(os.path.join(directory, self.name))
            self._maps.append(load_map(directory, self.name) if exists else None)
        return self._maps[depth] if depth < len(self._maps) else None

    def counts(self, start: int, end: int) -> Counts:
        """Where the bytes of a range are."""
        top = self.level(0)
        if top is None or end <= start:
            return Counts()
        if self._sums is None:
            self._sums = _Sums(top.runs, top.starts)
        return self._sums.between(start, end)

    def pieces(
        self, start: int, end: int, depth: int = 0
    ) -> Iterator[tuple[int, bytes | None, int]]:
        """Address, bytes and size of what is there between two addresses, in order.

        Without bytes: pages that are lazy, or that should be in a parent and are not.
        """
        top = self.level(depth)
        if top is None:
            return
        fd = -1
        try:
            for run in top.between(start, end):
                first, last = max(run[0], start), min(run[1], end)
                if run[2] & PRESENT:
                    if fd < 0:
                        fd = open_file(top.pages)
                    yield from _stored(top, fd, run, first, last)
                elif run[2] & IN_PARENT:
                    yield from self._of_parent(first, last, depth + 1)
                else:
                    yield first, None, last - first
        finally:
            if fd >= 0:
                os.close(fd)

    def _of_parent(
        self, start: int, end: int, depth: int
    ) -> Iterator[tuple[int, bytes | None, int]]:
        """All of a range: what the parents lack is told as a piece without bytes."""
        at = start
        for begin, data, size in self.pieces(start, end, depth):
            if begin > at:
                yield at, None, begin - at
            yield begin, data, size
            at = begin + size
        if at < end:
            yield at, None, end - at


def _stored(
    top: PageMap, fd: int, run: Run, first: int, last: int
) -> Iterator[tuple[int, bytes, int]]:
    if run[0] in top.blocks:
        yield from _unpacked(top, fd, run, first, last)
        return
    for at in range(first, last, CHUNK):
        size = min(CHUNK, last - at)
        offset = run[3] + at - run[0]
        data = os.pread(fd, size, offset)
        if len(data) < size:
            raise damaged(top.pages, offset, f"{size - len(data)} bytes are missing")
        yield at, data, size


def _unpacked(
    top: PageMap, fd: int, run: Run, first: int, last: int
) -> Iterator[tuple[int, bytes, int]]:
    """The blocks of a compressed run: nothing is all zeros, a whole block is stored as it is."""
    whole, sizes = top.blocks[run[0]]
    offset = run[3]
    for number, size in enumerate(sizes):
        begin = run[0] + number * whole
        full = min(whole, run[1] - begin)
        if begin + full > first and begin < last:
            data = os.pread(fd, size, offset)
            if len(data) < size:
                raise damaged(top.pages, offset, f"{size - len(data)} bytes are missing")
            data = data if size == full else _unpack(data, full, top.pages, offset)
            low, high = max(first, begin), min(last, begin + full)
            yield low, data[low - begin : high - begin], high - low
        offset += size


def _unpack(data: bytes, size: int, path: str, offset: int) -> bytes:
    if not data:
        return bytes(size)
    try:
        from lz4 import block
    except ImportError:
        raise ImagesError(
            f"{path} is compressed, and the package lz4 is not installed: pip install lz4"
        ) from None
    try:
        unpacked: bytes = block.decompress(data, uncompressed_size=size)
    except block.LZ4BlockError as error:
        raise damaged(path, offset, f"a block cannot be decompressed: {error}") from None
    if len(unpacked) != size:
        raise damaged(path, offset, f"a block has {len(unpacked)} bytes instead of {size}")
    return unpacked
