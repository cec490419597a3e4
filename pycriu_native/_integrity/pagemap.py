"""The runs of a page map: columns of numbers, filled and counted by ``native/pagemap.c``.

A large process has hundreds of thousands of runs. An object for each would take most of the time of
an inspection.
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

MIN_ENTRY = 8
"""Bytes of the smallest valid entry, with its length."""

_uninitialized = ffi.new_allocator(should_clear_after_alloc=False)
_COLUMNS = range(native.PN_COLUMNS)
_TOTALS = (native.PN_STORED, native.PN_IN_PARENT, native.PN_LOADED_LAZILY)


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
        """Add the complete entries of a page map at the beginning of these bytes.

        Returns their size in bytes, and why the next entry is invalid: None if it is not, and an
        empty string if it is not a ``pagemap_entry``.
        """
        state, capacity = self._state, len(data) // MIN_ENTRY + 1
        columns, sizes = (
            _uninitialized("uint64_t[]", capacity * len(_COLUMNS)),
            _uninitialized("uint32_t[]", len(data)),
        )
        state.columns, state.capacity = columns, capacity
        state.sizes, state.sizes_capacity = sizes, len(data)
        state.sizes_before = len(self._sizes)
        read_bytes: int = native.pn_read_runs(state, data, len(data))
        read, size = ffi.buffer(columns), state.count * 8
        for column, begin in zip(self._columns, range(0, len(read), capacity * 8), strict=True):
            column.frombytes(read[begin : begin + size])
        self._sizes.frombytes(ffi.buffer(sizes)[: state.n_sizes * 4])
        state.columns = state.sizes = ffi.NULL
        return read_bytes, PROBLEMS[state.problem]

    @property
    def total(self) -> Counts:
        """The bytes of all runs, by location."""
        stored, in_parent, lazy = self._state.totals
        return stored, in_parent, lazy

    def between(self, start: int, end: int) -> Iterator[tuple[int, Run]]:
        """The index and run of each run that overlaps a range of addresses."""
        starts, ends, flags, offsets = self._columns[:4]
        for index in range(max(bisect.bisect_right(starts, start) - 1, 0), len(starts)):
            if starts[index] >= end:
                return
            if ends[index] > start:
                yield index, (starts[index], ends[index], flags[index], offsets[index])

    def blocks(self, index: int) -> tuple[int, Sequence[int]] | None:
        """For a compressed run: bytes of memory in a block, and the stored size of each block."""
        block = self._columns[native.PN_BLOCK][index]
        if not block:
            return None
        start, end = self._columns[native.PN_START][index], self._columns[native.PN_END][index]
        first = self._columns[native.PN_SIZES][index]
        return block, self._sizes[first : first - (start - end) // block]

    def count(self, starts: Sequence[int], ends: Sequence[int]) -> list[Counts]:
        """The bytes in each range of addresses."""
        if self._pointers is None:
            held: list[object] = [ffi.from_buffer("uint64_t[]", each) for each in self._columns]
            self._pointers = ffi.new("uint64_t *[]", held), held
        out = _uninitialized("uint64_t[]", max(len(starts), 1) * len(_TOTALS))
        native.pn_count_in_ranges(
            self._pointers[0],
            len(self),
            ffi.from_buffer("uint64_t[]", array("Q", starts)),
            ffi.from_buffer("uint64_t[]", array("Q", ends)),
            len(starts),
            out,
        )
        flat = iter(ffi.unpack(out, len(starts) * len(_TOTALS)))
        return list(zip(flat, flat, flat, strict=True))


PROBLEMS = {
    native.PN_VALID: None,
    native.PN_MALFORMED: "",
    native.PN_MISPLACED: "its pages overlap, are not page-aligned or exceed the address space",
    native.PN_BAD_BLOCKS: "its compressed blocks cannot hold its pages",
}
