"""Statistics images in CRIU's format, for plots of features that this kernel lacks."""

from __future__ import annotations

import struct
from pathlib import Path

from pycriu_native._integrity.statistics import DUMP_FIELDS, SERVICE_MAGIC, STATS_MAGIC

NUMBERS = {name: number for number, name in enumerate(DUMP_FIELDS.split(), 1)}


def write_dump_statistics(directory: Path, **fields: int) -> None:
    """Write ``stats-dump`` with these fields."""
    entry = b"".join(_varint(NUMBERS[name] << 3) + _varint(v) for name, v in fields.items())
    message = _varint(1 << 3 | 2) + _varint(len(entry)) + entry
    head = struct.pack("<III", SERVICE_MAGIC, STATS_MAGIC, len(message))
    (directory / "stats-dump").write_bytes(head + message)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
