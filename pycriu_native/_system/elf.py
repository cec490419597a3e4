"""ELF files (elf(5)): whether a program has a loader, and build ids, which CRIU compares."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator

from .._support.unpatched import closing

_LARGEST_NOTES = 2**16
_INTERPRETER, _NOTE = 3, 4  # PT_INTERP, PT_NOTE
_BUILD_ID = 3  # NT_GNU_BUILD_ID

_WIDE = struct.Struct("<32xQ14xHH"), struct.Struct("<I4xQ16xQ16x")
_NARROW = struct.Struct("<28xI10xHH"), struct.Struct("<II8xI12x")
"""Of the file header: offset, size and number of the program headers. Of a program header: type,
offset and length of the segment. For 64 and 32 bits."""


def is_static(path: str) -> bool:
    """Whether an ELF program has no loader. Raises ``OSError``."""
    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        kinds = [kind for kind, _, _ in _segments(fd)]
    return bool(kinds) and _INTERPRETER not in kinds


def build_id(path: str) -> str | None:
    """The build id in hexadecimal; None without one, for other files and unreadable ones."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    with contextlib.suppress(OSError, OverflowError), closing(os.open(path, flags)) as fd:
        for kind, at, length in _segments(fd):
            if kind == _NOTE and (result := _in_notes(fd, at, length)):
                return result
    return None


def _segments(fd: int) -> Iterator[tuple[int, int, int]]:
    """Type, offset and length of each segment; none of other files."""
    head = os.pread(fd, 64, 0)
    if head[:4] != b"\x7fELF" or len(head) < 64 or head[5] != 1:
        return
    file_header, program_header = _WIDE if head[4] == 2 else _NARROW
    table, size, count = file_header.unpack_from(head)
    with contextlib.suppress(OverflowError):
        for index in range(min(count, 128)):
            row = os.pread(fd, size, table + index * size)
            if len(row) >= program_header.size:
                yield program_header.unpack_from(row)


def _in_notes(fd: int, offset: int, length: int) -> str | None:
    notes = os.pread(fd, min(length, _LARGEST_NOTES), offset)
    at = 0
    while at + 12 <= len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        begin = at + 12 + (name + 3 & ~3)
        if kind == _BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0":
            return notes[begin : begin + size].hex()
        at = begin + (size + 3 & ~3)
    return None
