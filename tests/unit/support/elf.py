"""The dynamic symbols of a shared library, read from its file: the reference for ``lib``."""

from __future__ import annotations

import struct
from pathlib import Path

SHT_DYNSYM = 11
STT_FUNC = 2
UNDEFINED = 0


def exported_functions(path: Path) -> set[str]:
    """The functions that a 64-bit little-endian library exports."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * n) for n in range(count)]
    symbols = next(section for section in sections if section[1] == SHT_DYNSYM)
    start, length, strings = symbols[4], symbols[5], sections[symbols[6]][4]
    names = set()
    for offset in range(start, start + length, 24):
        name, info, _other, section = struct.unpack_from("<IBBH", data, offset)
        if info & 15 == STT_FUNC and section != UNDEFINED:
            names.add(data[strings + name : data.index(b"\0", strings + name)].decode())
    return names


def interface(path: Path) -> set[str]:
    """libcriu's own functions: those of protobuf-c have a double underscore."""
    return {
        name for name in exported_functions(path) if name.startswith("criu_") and "__" not in name
    }
