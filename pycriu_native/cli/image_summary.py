"""The pids and the size of an image set, read without the package protobuf."""

from __future__ import annotations

import os
from typing import NamedTuple

from .._system.regular_file import read_regular
from .._wire.fields import message_fields, messages_of
from .._wire.protobuf import image_of

LARGEST = 2**30
"""Bytes of ``pstree.img`` that are read."""


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
        data = read_regular(os.path.join(directory, "pstree.img"), LARGEST)
        if not data.startswith(image_of("PSTREE")):
            return []
        fields = [field for entry in messages_of(data) for field in message_fields(entry)]
    except (OSError, ValueError):
        return []
    return [value for number, value in fields if number == 1 and isinstance(value, int)]
