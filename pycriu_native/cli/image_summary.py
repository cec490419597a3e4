"""The pids and the size of an image set, read without the package protobuf."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from .._system.regular_file import open_regular
from .._wire.fields import message_fields

MAGIC = (0x54564319, 0x50273030)
"""The first two numbers of ``pstree.img`` (CRIU's ``criu/include/magic.h``)."""


class Size(NamedTuple):
    """Total size and number of images."""

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
    """The pids of a dump, in the pid namespace of the processes; none for a pre-dump."""
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
