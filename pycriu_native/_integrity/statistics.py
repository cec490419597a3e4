"""CRIU's statistics image (``stats-dump``, ``stats-restore``), read without protobuf.

The file is two magic numbers, a length, and one message of ``stats.proto``; all of the
fields that it holds are varints.
"""

from __future__ import annotations

from .._system.regular_file import read_regular
from .._wire.fields import message_fields, messages_of
from .._wire.image_kinds import HEADS
from ..results import DumpStatistics, RestoreStatistics

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
    fields = _read(directory, "stats-dump", 1, DUMP_FIELDS)
    return None if fields is None else DumpStatistics(**fields)


def read_restore(directory: int) -> RestoreStatistics | None:
    """The statistics of a restore in an open directory; None where there are none."""
    fields = _read(directory, "stats-restore", 2, RESTORE_FIELDS)
    return None if fields is None else RestoreStatistics(**fields)


def _read(directory: int, image: str, number: int, names: str) -> dict[str, int] | None:
    try:
        numbers = parse(read_regular(image, LARGEST, dir_fd=directory), number)
    except (OSError, ValueError):
        return None
    return {name: numbers[at] for at, name in enumerate(names.split(), 1) if at in numbers}


def parse(data: bytes, number: int) -> dict[int, int]:
    """The numbers of an image's entry for dumps (1) or restores (2). ``ValueError``.

    The file can have been made by any user: its content is not trusted.
    """
    for message in messages_of(data) if data.startswith(HEADS["STATS"]) else ():
        for key, value in message_fields(message):
            if key == number and isinstance(value, bytes):
                return {k: v for k, v in message_fields(value) if isinstance(v, int)}
    raise ValueError("these are no statistics")
