"""The runs of a page map, decoded by protobuf: the reference for the decoder in C."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from pycriu_native._integrity.page_size import HOST_PAGE as PAGE
from pycriu_native._integrity.pagemap import Run, Runs
from pycriu_native.images.schema import message

PARENT, LAZY, PRESENT, ALIGNED = 1, 2, 4, 8
Blocks = tuple[int, list[int]]


def frame(payload: bytes) -> bytes:
    """A message in the framing of an image file."""
    return struct.pack("<I", len(payload)) + payload


def by_protobuf(data: bytes) -> tuple[list[tuple[Run, Blocks | None]], int, bool]:
    """The runs, their size in bytes, and whether the data after them is invalid."""
    result: list[tuple[Run, Blocks | None]] = []
    at = last = offset = 0
    while len(data) - at >= 4:
        (size,) = struct.unpack_from("<I", data, at)
        if size > len(data) - at - 4:
            break
        entry = _entry(data[at + 4 : at + 4 + size])
        if entry is None:
            return result, at, True
        run, blocks, offset = _run(entry, offset)
        if run is None or run[0] < last:
            return result, at, True
        last = run[1]
        result.append((run, blocks))
        at += 4 + size
    return result, at, False


def _entry(data: bytes) -> Any:
    try:
        entry = message("pagemap_entry").FromString(data)
    except DecodeError:
        return None
    return entry if entry.IsInitialized() and not any(map(_has_groups, _parts(entry))) else None


def _parts(entry: Any) -> Iterator[Any]:
    yield entry
    if entry.HasField("blocks"):
        yield entry.blocks


def _has_groups(found: Any) -> bool:
    unknown: Any = UnknownFieldSet(found)
    return any(each.wire_type == 3 for each in unknown)


def _run(entry: Any, offset: int) -> tuple[Run | None, Blocks | None, int]:
    size = (entry.nr_pages or entry.compat_nr_pages) * PAGE
    flags = entry.flags if entry.HasField("flags") or entry.in_parent else PRESENT
    flags |= PARENT if entry.in_parent else 0
    end = entry.vaddr + size
    blocks = None
    here = offset
    if flags & PRESENT:
        if flags & ALIGNED:
            here = offset = -(-offset // PAGE) * PAGE
        offset += size
        if entry.HasField("blocks"):
            whole, sizes = entry.blocks.pages_per_block * PAGE, list(entry.blocks.block_sizes)
            good = 0 < whole <= 4 * 2**20 and len(sizes) == -(-size // whole)
            if not good or max(sizes, default=0) > whole:
                return None, None, 0
            blocks = whole, sizes
            offset = here + sum(sizes)
    if entry.vaddr % PAGE or end >= 2**64 or offset >= 2**64:
        return None, None, 0
    return (entry.vaddr, end, flags, here), blocks, offset


def check(data: bytes) -> Runs:
    """Compare the decoder in C with protobuf's."""
    expected, taken, bad = by_protobuf(data)
    runs = Runs()
    at, why = runs.take(data)
    assert (at, why is not None) == (taken, bad), (at, why, taken, bad)
    result = list(runs.between(0, 2**64 - 1))
    assert result == [(n, run) for n, (run, _) in enumerate(expected) if run[1] > 0]
    assert len(runs) == len(expected)
    for index, (_, blocks) in enumerate(expected):
        ours = runs.blocks(index)
        assert (ours and (ours[0], list(ours[1]))) == blocks
    return runs


def counted(runs: Runs, start: int, end: int) -> tuple[int, int, int]:
    """The bytes in a range, counted run by run."""
    sums = [0, 0, 0]
    for _, run in runs.between(start, end):
        sort = 0 if run[2] & PRESENT else 1 if run[2] & PARENT else 2 if run[2] & LAZY else None
        if sort is not None:
            sums[sort] += min(run[1], end) - max(run[0], start)
    return sums[0], sums[1], sums[2]
