"""Read and search the memory of a dumped process, without a restore."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from .._support.frozen_dataclass import dataclass
from ..errors import ImagesError
from .memory_mapping import MemoryMapping, VmaKind
from .pages import CHUNK, Layers

OVERLAP = 2**16
"""Longest match of a regular expression that is found at any position, in bytes."""
LARGEST_READ = 2**30
"""Maximum bytes of one ``read``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A match of a search in memory."""

    address: int
    data: bytes
    """The bytes that matched."""
    mapping: MemoryMapping


class Memory:
    """The memory of one process in an image set.

    Pages are read from the images and their parents. Anonymous memory that was never written to
    reads as zeros. Pages of a file that the process did not change are not in the images.

    Page maps are read once, at first use; files are open only during a call. Objects may be used
    from several threads.
    """

    def __init__(
        self,
        pid: int,
        mappings: Sequence[MemoryMapping],
        source: Sequence[str],
        pagemap: int,
        page: int,
    ) -> None:
        self.pid = pid
        self.mappings = tuple(mappings)
        self._source = source
        self._pagemap = pagemap
        self._page = page
        self._layers: dict[str, Layers] = {}

    def __repr__(self) -> str:
        size = sum(each.size for each in self.mappings)
        return f"<Memory of {self.pid}: {len(self.mappings)} mappings, {size} bytes>"

    def read(self, address: int, size: int) -> bytes:
        """The bytes at an address.

        Raises ``ImagesError`` for an address that is not mapped; for pages that are in no image:
        lazy ones, those of a missing parent, those of a file that were not changed (the error
        names file and offset); and for more than 1 GiB at once. ``ValueError`` for a negative
        size or address.
        """
        if address < 0 or size < 0:
            raise ValueError(f"address={address}, size={size}: both must be 0 or more")
        if size > LARGEST_READ:
            raise ImagesError(f"size={size}: at most {LARGEST_READ} bytes are read at once")
        end = address + size
        parts: list[bytes] = []
        at = address
        for mapping in self.mappings:
            if mapping.end <= at or mapping.start > at or at >= end:
                continue
            last = min(mapping.end, end)
            for begin, data, length in self._pieces(mapping, at, last):
                if begin > at:
                    parts.append(self._hole(mapping, at, begin - at))
                if data is None:
                    raise ImagesError(
                        f"{length} bytes at {begin:#x} of process {self.pid} are "
                        "in none of these images: lazy, or of a missing parent"
                    )
                parts.append(data)
                at = begin + length
            if at < last:
                parts.append(self._hole(mapping, at, last - at))
                at = last
        if at < end:
            raise ImagesError(f"{at:#x} is not mapped in process {self.pid}")
        return b"".join(parts)

    def search(
        self, pattern: bytes | re.Pattern[bytes], *, kinds: Collection[VmaKind | str] = ()
    ) -> Iterator[Match]:
        """Find bytes or a regular expression, by ascending address.

        ``kinds`` limits it to mappings of these kinds. All pages in the images and their parents
        are searched; a match can extend over adjacent pages. Matches of a bytes pattern may
        overlap; those of an expression do not, and are at most 64 KiB long.

        Raises ``ValueError`` for an empty pattern or an unknown kind and ``TypeError`` for text.
        """
        names = {str(kind) for kind in kinds}
        if unknown := names.difference(map(str, VmaKind)):
            raise ValueError(f"kinds={sorted(unknown)}: the values of VmaKind are accepted")
        if isinstance(pattern, re.Pattern):
            if not isinstance(pattern.pattern, bytes):
                raise TypeError(f"pattern={pattern.pattern!r}: an expression of bytes is needed")
        elif not isinstance(pattern, bytes | bytearray):
            raise TypeError(f"pattern={pattern!r}: bytes are needed, or an expression of bytes")
        elif not pattern:
            raise ValueError("pattern=b'': at least one byte is needed")
        return (
            Match(address=address, data=data, mapping=mapping)
            for mapping in self.mappings
            if not names or str(mapping.kind) in names
            for address, data in _matches(pattern, self._windows(mapping, pattern))
        )

    def find(self, pattern: bytes | re.Pattern[bytes]) -> Iterator[int]:
        """The addresses of all matches; see ``search``."""
        return (result.address for result in self.search(pattern))

    def pieces(self) -> Iterator[tuple[int, bytes | None, int, MemoryMapping]]:
        """All pages in the images: address, bytes, number of bytes, and mapping.

        At most 1 MiB at a time, by ascending address. Without bytes: pages that are lazy, or of a
        parent that is missing.
        """
        for mapping in self.mappings:
            for address, data, size in self._pieces(mapping, mapping.start, mapping.end):
                yield address, data, size, mapping

    def _pieces(
        self, mapping: MemoryMapping, start: int, end: int
    ) -> Iterator[tuple[int, bytes | None, int]]:
        if mapping.shared is None:
            yield from self._of(f"pagemap-{self._pagemap}.img").pieces(start, end)
            return
        layers = self._of(f"pagemap-shmem-{mapping.shared}.img")
        shift = mapping.start - mapping.offset
        for begin, data, length in layers.pieces(start - shift, end - shift):
            yield begin + shift, data, length

    def _of(self, name: str) -> Layers:
        if name not in self._layers:
            self._layers[name] = Layers(self._source, name, self._page)
        return self._layers[name]

    def _hole(self, mapping: MemoryMapping, at: int, size: int) -> bytes:
        if mapping.reads_as_zeros:
            return bytes(size)
        where = mapping.offset + at - mapping.start
        raise ImagesError(
            f"{size} bytes at {at:#x} of process {self.pid} are not in the images: "
            + (f"{mapping.path}, offset {where}" if mapping.path else f"a {mapping.kind} mapping")
        )

    def _windows(
        self, mapping: MemoryMapping, pattern: bytes | re.Pattern[bytes]
    ) -> Iterator[tuple[int, bytes, int]]:
        """Address, bytes, and the number of bytes in which a match may begin."""
        overlap = OVERLAP if isinstance(pattern, re.Pattern) else len(pattern) - 1
        held, at = b"", mapping.start
        for begin, data, _ in self._pieces(mapping, mapping.start, mapping.end):
            if held and begin != at + len(held):
                yield at, held, len(held)
                held = b""
            if data is None:
                continue
            if not held:
                at = begin
            held += data
            if len(held) > overlap + CHUNK:
                yield at, held, len(held) - overlap
                at += len(held) - overlap
                held = held[len(held) - overlap :]
        if held:
            yield at, held, len(held)


def _matches(
    pattern: bytes | re.Pattern[bytes], windows: Iterator[tuple[int, bytes, int]]
) -> Iterator[tuple[int, bytes]]:
    free = 0
    """Where the next match may begin: matches of an expression do not overlap."""
    for address, data, core in windows:
        if isinstance(pattern, re.Pattern):
            for match in pattern.finditer(data, max(free - address, 0)):
                if match.start() >= core:
                    break
                if match.end() > match.start():
                    yield address + match.start(), match.group()
                    free = address + match.end()
        else:
            at = data.find(pattern)
            while 0 <= at < core:
                yield address + at, pattern
                at = data.find(pattern, at + 1)
