"""CRIU's statistics image (``stats-dump``, ``stats-restore``), read without protobuf.

The file is two magic numbers, a length, and one message of ``stats.proto``; all of the
fields that it holds are varints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from .results import DumpStatistics, RestoreStatistics

SERVICE_MAGIC = 0x55105940
STATS_MAGIC = 0x57093306
LARGEST = 4096
"""Bytes: a statistics image is about 100."""

_DUMP = {
    1: "freezing_time",
    2: "frozen_time",
    3: "memdump_time",
    4: "memwrite_time",
    5: "pages_scanned",
    6: "pages_skipped_parent",
    7: "pages_written",
    8: "irmap_resolve_time",
    9: "pages_lazy",
    10: "page_pipes",
    11: "page_pipe_bufs",
    12: "shpages_scanned",
    13: "shpages_skipped_parent",
    14: "shpages_written",
}
_RESTORE = {
    1: "pages_compared",
    2: "pages_skipped_cow",
    3: "forking_time",
    4: "restore_time",
    5: "pages_restored",
}


def read_dump(directory: int) -> DumpStatistics | None:
    """The statistics of a dump or pre-dump in an open directory; None where there are none."""
    fields = _entry(directory, "stats-dump", 1)
    return None if fields is None else DumpStatistics(**_named(fields, _DUMP))


def read_restore(directory: int) -> RestoreStatistics | None:
    """The statistics of a restore in an open directory; None where there are none."""
    fields = _entry(directory, "stats-restore", 2)
    return None if fields is None else RestoreStatistics(**_named(fields, _RESTORE))


def _named(fields: dict[int, int], names: dict[int, str]) -> dict[str, int]:
    return {names[number]: value for number, value in fields.items() if number in names}


def _entry(directory: int, name: str, number: int) -> dict[int, int] | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    except OSError:
        return None
    try:
        return parse(os.read(fd, LARGEST), number)
    finally:
        os.close(fd)


def parse(data: bytes, number: int) -> dict[int, int] | None:
    """The numbers of an image's entry for dumps (1) or restores (2); None if these bytes are none.

    The file can be anybody's, so nothing in it is believed.
    """
    try:
        service, stats, size = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 8))
        if (service, stats) != (SERVICE_MAGIC, STATS_MAGIC):
            return None
        for key, value in message_fields(data[12 : 12 + size]):
            if key == number and isinstance(value, bytes):
                return {k: v for k, v in message_fields(value) if isinstance(v, int)}
    except ValueError:
        pass
    return None


def message_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of each varint and each length-delimited field."""
    at = 0
    while at < len(data):
        key = data[at]  # of one byte, as a rule
        key, at = (key, at + 1) if key < 0x80 else _varint(data, at)
        value, at = _varint(data, at)
        if key & 7 == 2:
            if at + value > len(data):
                raise ValueError("a field reaches past the end")
            yield key >> 3, data[at : at + value]
            at += value
        elif key & 7 == 0:
            yield key >> 3, value
        else:
            raise ValueError("a wire type that these messages do not have")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number without an end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
