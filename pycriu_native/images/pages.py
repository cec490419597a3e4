"""Find and read the pages of an image set and its parents.

A pagemap lists runs of pages. The pages of a run are in the ``pages`` file of the same set, one
run after the other, or in that of a parent, or are lazy: the dump serves them. Pages in no run
were never written to by the process: they are zeros, or those of the mapped file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .._integrity.pagemap import IN_PARENT, PRESENT, Counts, Run, Runs
from .._support.unpatched import close
from ..errors import ImagesError
from .reader import damaged, expect, open_file

CHUNK = 2**20
"""Bytes of one read."""


class PageMap(NamedTuple):
    """One pagemap, and the name of its ``pages`` file."""

    name: str
    """``pagemap-4242.img``."""
    directory: str
    pages_id: int
    runs: Runs

    @property
    def pages(self) -> str:
        """The path of the file with the pages."""
        return f"{self.directory}/{self.pages_name}"

    @property
    def pages_name(self) -> str:
        """Its name."""
        return f"pages-{self.pages_id}.img"


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of addresses, which ascend; those that touch or overlap are one."""
    result: list[tuple[int, int]] = []
    for start, end in ranges:
        if result and result[-1][1] >= start:
            result[-1] = result[-1][0], max(result[-1][1], end)
        else:
            result.append((start, end))
    return result


def load_map(directory: str, name: str, page: int) -> PageMap:
    """Read a pagemap of pages of ``page`` bytes. ``ImagesError``: it is missing or invalid."""
    path = f"{directory}/{name}"
    with expect(path, "PAGEMAP") as file:
        if file.start == file.size:
            raise damaged(path, file.start, "there is no pagemap_head")
        head, at = file.parse(file.start, "pagemap_head")
        result = PageMap(name, directory, head.pages_id, Runs(page))
        while at < file.size:
            window = file.window(at, "pagemap_entry")
            taken, why = result.runs.take(window)
            at += taken
            if why == "":
                file.parse(at, "pagemap_entry")  # raises a more exact error
            if why is not None:
                raise damaged(path, at + 4, why or "this is no pagemap_entry")
    return result


Stored = tuple[int, int, PageMap, int]
"""Start, end, the page map that has the pages, and their offset in its pages file."""


class _Part(NamedTuple):
    """Pages of one run between two addresses."""

    start: int
    end: int
    owner: PageMap
    number: int
    run: Run | None
    """None: the parent of ``owner`` should have the pages, and lacks them."""


MOST_OPEN = 64
"""Pages files that are open at the same time: a chain of parents can have more."""


class OpenPages:
    """Descriptors of pages files, each opened on first use."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def __enter__(self) -> OpenPages:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            close(fd)

    def of(self, page_map: PageMap) -> int:
        """The descriptor of the file that has these pages, valid until the next call."""
        path = page_map.pages
        if path not in self._fds:
            if len(self._fds) >= MOST_OPEN:
                close(self._fds.pop(next(iter(self._fds))))
            self._fds[path] = open_file(path)[0]
        return self._fds[path]


class Layers:
    """The pagemaps of one memory, the newest first; each refers to the next for parent pages."""

    def __init__(self, directories: Sequence[str], name: str, page: int) -> None:
        self.name = name
        self._page = page
        self._directories = directories
        self._maps: list[PageMap | None] = []

    def level(self, depth: int) -> PageMap | None:
        """The pagemap of the set itself (0), of its parent (1), and so on; None past the end."""
        while len(self._maps) <= depth < len(self._directories):
            directory = self._directories[len(self._maps)]
            exists = os.path.lexists(os.path.join(directory, self.name))
            self._maps.append(load_map(directory, self.name, self._page) if exists else None)
        return self._maps[depth] if depth < len(self._maps) else None

    def counts(self, starts: Sequence[int], ends: Sequence[int]) -> list[Counts]:
        """The location of the bytes of each address range."""
        top = self.level(0)
        return [(0, 0, 0)] * len(starts) if top is None else top.runs.count(starts, ends)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, bytes | None, int]]:
        """Address, bytes and size of the pages between two addresses, in order.

        Without bytes: pages that are lazy, or that should be in a parent and are not.
        """
        with OpenPages() as opened:
            for first, last, owner, index, run in self._parts(start, end):
                if run is not None and run[2] & PRESENT:
                    yield from _stored(owner, opened.of(owner), index, run, first, last)
                else:
                    yield first, None, last - first

    def stored(self) -> Iterator[Stored]:
        """The locations of all pages, in the set and its parents.

        Raises ``ImagesError`` for pages that are compressed, lazy, or missing in the parents.
        """
        for first, last, owner, index, run in self._parts(0, 2**64):
            if run is None:
                why = f"the parent lacks {last - first} bytes"
            elif not run[2] & PRESENT:
                why = "pages are not in the images; dump without lazy_pages"
            elif owner.runs.blocks(index):
                why = "the pages are compressed; dump without compress"
            else:
                yield first, last, owner, run[3] + first - run[0]
                continue
            raise ImagesError(f"{owner.directory}/{owner.name}: {why}")

    def _parts(self, start: int, end: int) -> Iterator[_Part]:
        """The runs between two addresses, those of parents in place of references to them."""
        # A chain of parents can be longer than the limit of recursion.
        waiting = [self._of_level(0, None, start, end)]
        while waiting:
            part = next(waiting[-1], None)
            if part is None:
                waiting.pop()
            elif part.run is not None and part.run[2] & (PRESENT | IN_PARENT) == IN_PARENT:
                below = self._of_level(len(waiting), part.owner, part.start, part.end)
                waiting.append(below)
            else:
                yield part

    def _of_level(self, depth: int, child: PageMap | None, start: int, end: int) -> Iterator[_Part]:
        """The runs of one level; ``child`` refers to all of these pages in it."""
        top = self.level(depth)
        at = start
        for index, run in () if top is None else top.runs.between(start, end):
            assert top is not None
            first, last = max(run[0], start), min(run[1], end)
            if child is not None and first > at:
                yield _Part(at, first, child, 0, None)
            yield _Part(first, last, top, index, run)
            at = last
        if child is not None and at < end:
            yield _Part(at, end, child, 0, None)


def _stored(
    top: PageMap, fd: int, index: int, run: Run, first: int, last: int
) -> Iterator[tuple[int, bytes, int]]:
    blocks = top.runs.blocks(index)
    if blocks is not None:
        yield from _unpacked(top, fd, run, blocks, first, last)
        return
    for at in range(first, last, CHUNK):
        size = min(CHUNK, last - at)
        offset = run[3] + at - run[0]
        data = os.pread(fd, size, offset)
        if len(data) < size:
            raise damaged(top.pages, offset, f"{size - len(data)} bytes are missing")
        yield at, data, size


def _unpacked(
    top: PageMap, fd: int, run: Run, blocks: tuple[int, Sequence[int]], first: int, last: int
) -> Iterator[tuple[int, bytes, int]]:
    """The blocks of a compressed run: an empty block is zeros, a full one is not compressed."""
    whole, sizes = blocks
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
