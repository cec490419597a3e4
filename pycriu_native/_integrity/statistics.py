"""CRIU's statistics image (``stats-dump``, ``stats-restore``), read without protobuf.

The file is two magic numbers, a length, and one message of ``stats.proto``; all of the
fields that it holds are varints.
"""

from __future__ import annotations

from .._system.regular_file import read_regular
from .._wire.fields import message_fields
from ..results import DumpStatistics, RestoreStatistics

SERVICE_MAGIC = 0x55105940
STATS_MAGIC = 0x57093306
_BEGIN = SERVICE_MAGIC.to_bytes(4, "little") + STATS_MAGIC.to_bytes(4, "little")
LARGEST = 4096
"""Bytes: a statistics image is about 100."""

DUMP_FIELDS = (
    "freezing_time frozen_time memdump_time memwrite_time pages_scanned pages_skipped_parent "
    "pages_written irmap_resolve_time pages_lazy page_pipes page_pipe_bufs shpages_scanned "
    "shpages_skipped_parent shpages_written"
)
RESTORE_FIELDS = "pages_compared pages_skipped_cow forking_time restore_time pages_restored"
"""The fields of both kinds of entry, in the order of their numbers."""


def read_dump(directory: int) -> DumpStatistics | None:
    """The statistics of a dump or pre-dump in an open directory; None where there are none."""
    fields = _entry(directory, "stats-dump", 1)
    return None if fields is None else DumpStatistics(**_named(fields, DUMP_FIELDS))


def read_restore(directory: int) -> RestoreStatistics | None:
    """The statistics of a restore in an open directory; None where there are none."""
    fields = _entry(directory, "stats-restore", 2)
    return None if fields is None else RestoreStatistics(**_named(fields, RESTORE_FIELDS))


def _named(fields: dict[int, int], names: str) -> dict[str, int]:
    numbered = enumerate(names.split(), 1)
    return {name: fields[number] for number, name in numbered if number in fields}


def _entry(directory: int, name: str, number: int) -> dict[int, int] | None:
    try:
        data = read_regular(name, LARGEST, dir_fd=directory)
    except OSError:
        return None
    return parse(data, number)


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
