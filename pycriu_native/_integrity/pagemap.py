"""The runs of a page map: columns of numbers, filled and counted by ``native/pagemap.c``.

A large process has hundreds of thousands of runs, and an object for each took most of the time
that an inspection took.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterator, Sequence

from .._native.ffi import ffi, native
from .page_size import HOST_PAGE

IN_PARENT, LAZY, PRESENT = native.PN_PARENT, native.PN_LAZY, native.PN_PRESENT

Run = tuple[int, int, int, int]
"""Start, end, flags, and offset in the pages file."""

Counts = tuple[int, int, int]
"""Bytes of memory: stored, in a parent, lazy."""

SMALLEST = 8
"""Bytes of an entry that has what it must have, its length included."""

_unset = ffi.new_allocator(should_clear_after_alloc=False)
_COLUMNS = range(native.PN_COLUMNS)
_TOTALS = (native.PN_STORED, native.PN_IN_PARENT, native.PN_LAZILY)


class Runs:
    """The runs, in ascending order. Once filled it may be read from several threads."""

    def __init__(self, page: int = HOST_PAGE) -> None:
        self._columns = [array("Q") for _ in _COLUMNS]
        self._sizes = array("I")
        self._state = ffi.new("struct pn_runs *", {"page": page})
        self._pointers: tuple[object, list[object]] | None = None

    def __len__(self) -> int:
        return len(self._columns[0])

    def take(self, data: bytes) -> tuple[int, str | None]:
        """Take in the entries of a page map that these bytes begin with, as far as they are whole.

        Gives how many bytes these are, and what is wrong with the next: a reason, or an empty one
        for what is no message of this kind.
        """
        state, room = self._state, len(data) // SMALLEST + 1
        columns, sizes = _unset("uint64_t[]", room * len(_COLUMNS)), _unset("uint32_t[]", len(data))
        state.columns, state.room, state.sizes, state.sizes_room = columns, room, sizes, len(data)
        state.sizes_before = len(self._sizes)
        taken: int = native.pn_read_runs(state, data, len(data))
        read, size = ffi.buffer(columns), state.count * 8
        for column, begin in zip(self._columns, range(0, len(read), room * 8), strict=True):
            column.frombytes(read[begin : begin + size])
        self._sizes.frombytes(ffi.buffer(sizes)[: state.n_sizes * 4])
        state.columns = state.sizes = ffi.NULL
        return taken, WHY[state.problem]

    @property
    def size(self) -> int:
        """Bytes that the pages file must have."""
        size: int = self._state.offset
        return size

    @property
    def total(self) -> Counts:
        """All of the memory."""
        stored, in_parent, lazy = self._state.below
        return stored, in_parent, lazy

    def between(self, start: int, end: int) -> Iterator[tuple[int, Run]]:
        """The runs that touch a range of addresses, each with its number."""
        starts, ends, flags, offsets = self._columns[:4]
        for index in range(max(bisect.bisect_right(starts, start) - 1, 0), len(starts)):
            if starts[index] >= end:
                return
            if ends[index] > start:
                yield index, (starts[index], ends[index], flags[index], offsets[index])

    def blocks(self, index: int) -> tuple[int, Sequence[int]] | None:
        """Of a compressed run: bytes of memory in a block, and the size of each as stored."""
        whole = self._columns[native.PN_BLOCK][index]
        if not whole:
            return None
        start, end = self._columns[native.PN_START][index], self._columns[native.PN_END][index]
        first = self._columns[native.PN_SIZES][index]
        return whole, self._sizes[first : first - (start - end) // whole]

    def count(self, starts: Sequence[int], ends: Sequence[int]) -> list[Counts]:
        """The bytes in each range of addresses."""
        if self._pointers is None:
            held: list[object] = [ffi.from_buffer("uint64_t[]", each) for each in self._columns]
            self._pointers = ffi.new("uint64_t *[]", held), held
        out = _unset("uint64_t[]", max(len(starts), 1) * len(_TOTALS))
        native.pn_count_between(
            self._pointers[0],
            len(self),
            ffi.from_buffer("uint64_t[]", array("Q", starts)),
            ffi.from_buffer("uint64_t[]", array("Q", ends)),
            len(starts),
            out,
        )
        flat = iter(ffi.unpack(out, len(starts) * len(_TOTALS)))
        return list(zip(flat, flat, flat, strict=True))


WHY = {
    native.PN_GOOD: None,
    native.PN_MALFORMED: "",
    native.PN_MISPLACED: "its pages cannot come here",
    native.PN_BAD_BLOCKS: "its compressed blocks cannot hold its pages",
}
