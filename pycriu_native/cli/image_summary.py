"""The pids and the size of an image set, read without the package protobuf."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from .._integrity.image_files import DamagedError, ImageFiles
from .._system.descriptors import opened_directory


class Size(NamedTuple):
    """Total size and number of images."""

    bytes: int
    files: int


def size_of(directory: str) -> Size:
    """The images in a directory, without those of its parents."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        sizes = [
            entry.stat().st_size
            for entry in entries
            if entry.name.endswith(".img") and entry.is_file(follow_symlinks=False)
        ]
        return Size(sum(sizes), len(sizes))
    return Size(0, 0)


def pids_in(directory: str) -> list[int]:
    """The pids of a dump, in the pid namespace of the processes; none for a pre-dump."""
    with contextlib.suppress(OSError, DamagedError), opened_directory(directory) as at:
        return list(dict.fromkeys(pid for _, pid, _ in ImageFiles(at).rows("pstree.img")))
    return []
