"""Copy the content of a file: by a reflink if possible, else without its holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from .._system.system_calls import clone_file

CHUNK = 16 * 2**20
"""Bytes that are copied between two calls of ``check``."""

COMPARED = 2**20
"""Bytes that are compared at a time."""

_ELSEWHERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
"""Errors of copy_file_range(2) if it does not support the two file systems."""


def reflink(source: int, target: int) -> bool:
    """Make an empty file share the blocks of ``source``; False if that is not supported."""
    try:
        clone_file(target, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return False
    return True


def common_length(first: int, second: int, check: Callable[[], object], *, at: int = 0) -> int:
    """The number of equal bytes at the start of ``first`` and from ``at`` on in ``second``.

    ``check`` is called after each part and may raise.
    """
    done = 0
    while True:
        one, other = os.pread(first, COMPARED, done), os.pread(second, COMPARED, at + done)
        if one != other or not one:
            return done + _equal(one, other)
        done += len(one)
        check()


def _equal(one: bytes, other: bytes) -> int:
    """The number of equal bytes at the start."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def copy(
    source: int, target: int, check: Callable[[], object], *, start: int = 0, at: int = 0
) -> None:
    """Copy from ``start`` to the end of a file, to ``at`` in an empty one; holes stay holes.

    ``check`` is called after each part and may raise.
    """
    size = os.fstat(source).st_size
    if start == at == 0 and reflink(source, target):
        return
    os.ftruncate(target, max(0, size - start) + at)
    for begin, end in _data(source, start, size):
        position = begin
        while position < end:
            copied = _part(
                source, target, min(CHUNK, end - position), position, position - start + at
            )
            if copied == 0:
                break  # the file was truncated meanwhile
            position += copied
            check()


def _data(source: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file between its holes."""
    position = start
    while position < size:
        try:
            begin = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole until the end
            yield position, size  # a file system without holes
            return
        end = os.lseek(source, begin, os.SEEK_HOLE)
        yield begin, min(end, size)
        position = end


def _part(source: int, target: int, count: int, begin: int, at: int) -> int:
    try:
        return os.copy_file_range(source, target, count, begin, at)
    except OSError as error:
        if error.errno not in _ELSEWHERE:
            raise
    data = os.pread(source, min(count, 2**20), begin)
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], at + done)
    return len(data)
