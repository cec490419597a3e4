"""The build id of an ELF file; CRIU compares it before it maps the file again."""

from __future__ import annotations

import os
import struct

from .._support.unpatched import close

_LARGEST_NOTES = 2**16
_NOTE = 4  # PT_NOTE
_BUILD_ID = 3  # NT_GNU_BUILD_ID


def build_id(path: str) -> str | None:
    """The build id in hexadecimal; None without one, for other files and unreadable ones."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        head = os.pread(fd, 64, 0)
        if head[:4] != b"\x7fELF" or len(head) < 64 or head[5] != 1:
            return None
        wide = head[4] == 2
        table, size, count = (
            (struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54))
            if wide
            else (struct.unpack_from("<I", head, 28)[0], *struct.unpack_from("<HH", head, 42))
        )
        for index in range(min(count, 128)):
            row = os.pread(fd, size, table + index * size)
            if len(row) < (56 if wide else 32) or struct.unpack_from("<I", row)[0] != _NOTE:
                continue
            at, length = (
                (struct.unpack_from("<Q", row, 8)[0], struct.unpack_from("<Q", row, 32)[0])
                if wide
                else (struct.unpack_from("<I", row, 4)[0], struct.unpack_from("<I", row, 16)[0])
            )
            result = _in_notes(os.pread(fd, min(length, _LARGEST_NOTES), at))
            if result:
                return result
        return None
    except (OSError, struct.error, OverflowError):
        return None
    finally:
        close(fd)


def _in_notes(notes: bytes) -> str | None:
    at = 0
    while at + 12 <= len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        begin = at + 12 + (name + 3 & ~3)
        if kind == _BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0":
            return notes[begin : begin + size].hex()
        at = begin + (size + 3 & ~3)
    return None
