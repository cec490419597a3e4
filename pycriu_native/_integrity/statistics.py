"""CRIU's statistics image (``stats-dump``, ``stats-restore``), read without protobuf.

The file is two magic numbers, a length, and one message of ``stats.proto``; all of the
fields that it holds are varints.
"""

from __future__ import annotations

import os

from .._support.unpatched import close
from .._system.regular_file import open_regular
from .._wire.fields import message_fields
from ..results import DumpStatistics, RestoreStatistics

SERVICE_MAGIC = 0x55105940
STATS_MAGIC = 0x57093306
_BEGIN = SERVICE_MAGIC.to_bytes(4, "little") + STATS_MAGIC.to_bytes(4, "little")
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
        fd = open_regular(name, dir_fd=directory)
    except OSError:
        return None
    try:
        return parse(os.read(fd, LARGEST), number)
    finally:
        close(fd)


def parse(data: bytes, number: int) -> dict[int, int] | None:
    """The numbers of an image's entry for dumps (1) or restores (2); None for invalid bytes.

    The file can have been made by any user: its content is not trusted.
    """
    try:
        if not data.startswith(_BEGIN):
            return None
        size = int.from_bytes(data[8:12], "little")
        for key, value in message_fields(data[12 : 12 + size]):
            if key == number and isinstance(value, bytes):
                return {k: v for k, v in message_fields(value) if isinstance(v, int)}
    except ValueError:
        pass
    return None
