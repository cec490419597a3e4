"""The build id of an ELF file; CRIU compares it before it maps the file again."""

from __future__ import annotations

import os
import struct

from .._support.unpatched import closing

_LARGEST_NOTES = 2**16
_NOTE = 4  # PT_NOTE
_BUILD_ID = 3  # NT_GNU_BUILD_ID

_WIDE = struct.Struct("<32xQ14xHH"), struct.Struct("<I4xQ16xQ16x")
_NARROW = struct.Struct("<28xI10xHH"), struct.Struct("<II8xI12x")
"""Of the file header: offset, size and number of the program headers. Of a program header: type,
offset and length of the segment. For 64 and 32 bits (elf(5))."""


def build_id(path: str) -> str | None:
    """The build id in hexadecimal; None without one, for other files and unreadable ones."""
    try:
        with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as fd:
            head = os.pread(fd, 64, 0)
            if head[:4] != b"\x7fELF" or len(head) < 64 or head[5] != 1:
                return None
            file_header, program_header = _WIDE if head[4] == 2 else _NARROW
            table, size, count = file_header.unpack_from(head)
            for index in range(min(count, 128)):
                row = os.pread(fd, size, table + index * size)
                if len(row) < program_header.size:
                    continue
                kind, at, length = program_header.unpack_from(row)
                notes = os.pread(fd, min(length, _LARGEST_NOTES), at) if kind == _NOTE else b""
                if result := _in_notes(notes):
                    return result
    except (OSError, struct.error, OverflowError):
        pass
    return None


def _in_notes(notes: bytes) -> str | None:
    at = 0
    while at + 12 <= len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        begin = at + 12 + (name + 3 & ~3)
        if kind == _BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0":
            return notes[begin : begin + size].hex()
        at = begin + (size + 3 & ~3)
    return None
