"""A summary of an images directory for commands: its pids and its size. Read without protobuf."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from .._integrity.statistics import message_fields
from .._system.regular_file import open_regular

MAGIC = (0x54564319, 0x50273030)
"""Of an image, and of ``pstree.img`` (CRIU's ``criu/include/magic.h``)."""


class Size(NamedTuple):
    """How much there is."""

    bytes: int
    files: int


def size_of(directory: str) -> Size:
    """The images in a directory, without those of its parents."""
    try:
        with os.scandir(directory) as entries:
            sizes = [
                entry.stat().st_size
                for entry in entries
                if entry.name.endswith(".img") and entry.is_file(follow_symlinks=False)
            ]
    except OSError:
        return Size(0, 0)
    return Size(sum(sizes), len(sizes))


def pids_in(directory: str) -> list[int]:
    """The processes of a dump, as their own pid namespace numbers them; none for a pre-dump."""
    try:
        with open(open_regular(os.path.join(directory, "pstree.img")), "rb") as file:
            data = file.read()
        if struct.unpack_from("<II", data) != MAGIC:
            return []
        result, at = [], 8
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            fields = message_fields(data[at + 4 : at + 4 + length])
            result += [value for number, value in fields if number == 1 and isinstance(value, int)]
            at += 4 + length
    except (OSError, struct.error, ValueError):
        return []
    return result
