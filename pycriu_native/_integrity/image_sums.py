"""Checksums of images that another one of their kind could replace unnoticed.

Two images of one kind can have the same structure: the registers of two threads, the descriptors of
two processes, two pages files of equal size. Only their contents show that a copy of one stands
under the name of the other. An image without such another one has no sum: in a set of one process
nothing is read.

Large images are sampled: a dump waits for its record, and its processes are frozen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from zlib import crc32

from .._support.unpatched import closing
from .._system.regular_file import open_regular

_PIECE, _PIECES = 4096, 48
"""Bytes of a sample, and the number of samples over a large file."""
_END = 16 * _PIECE
"""Bytes of its end that are read as well: in a pages file the stack, which differs most."""
_WHOLE = _PIECE * _PIECES + _END


def sums_of(directory: int, sizes: Mapping[bytes, int]) -> dict[bytes, int]:
    """The sum of each image that has another one of its kind; for pages, of equal size. OSError."""
    groups: dict[tuple[bytes, int], list[bytes]] = {}
    for name, size in sizes.items():
        kind = _kind(name)
        groups.setdefault((kind, size if kind == b"pages" else 0), []).append(name)
    several = (group for (kind, _), group in groups.items() if kind and len(group) > 1)
    return {name: sum_of(directory, name, sizes[name]) for group in several for name in group}


def sum_of(directory: int, name: bytes, size: int) -> int:
    """The sum of an image of this size. ``OSError``."""
    with closing(open_regular(os.fsdecode(name), dir_fd=directory)) as fd:
        if size <= _WHOLE:
            return crc32(os.pread(fd, size, 0))
        result = crc32(os.pread(fd, _END, size - _END))
        step = (size - _END) // _PIECES // _PIECE * _PIECE
        for number in range(_PIECES):
            result = crc32(os.pread(fd, _PIECE, number * step), result)
        return result


class Copies:
    """The images with sums of a set, to find copies of them under other names."""

    def __init__(self, images: Mapping[bytes, tuple[int, int | None]]) -> None:
        """``images``: the size and the sum of each at the dump."""
        self._images = images
        self._alike: dict[tuple[bytes, int], dict[int, bytes]] = {}
        for name, (size, total) in images.items():
            if total is not None:
                self._alike.setdefault((_kind(name), size), {})[total] = name

    def original(self, directory: int, name: bytes, size: int) -> bytes | None:
        """The other image whose contents this file now has; None if it has its own. ``OSError``.

        ``size`` is the present one. The file is read only if another image of its kind has it.
        """
        before, own = self._images[name]
        candidates = self._alike.get((_kind(name), size), {})
        if own is None or not candidates or (size == before and len(candidates) == 1):
            return None
        now = sum_of(directory, name, size)
        return None if now == own else candidates.get(now)


def _kind(name: bytes) -> bytes:
    """``core`` for ``core-42.img``; empty for an image without a number."""
    return name.rpartition(b"-")[0]
