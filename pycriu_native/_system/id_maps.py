"""The users and groups that are mapped in the user namespace of this process."""

from __future__ import annotations

from .._support.kernel_text import read_lines, read_text

NO_ID = 2**32 - 1
"""No user and no group has this number (``INVALID_UID`` of the kernel)."""


def unmapped(kind: str) -> int:
    """The ``uid`` or ``gid`` (``kind``) of all files whose owner or group is not mapped.

    ``NO_ID`` if all are, or it is mapped.
    """
    number, ranges = _overflow(kind)
    is_mapped = any(first <= number < first + count for first, _, count in ranges)
    return NO_ID if is_mapped else number


def is_overflow_uid(uid: int) -> bool:
    """Whether files of unmapped users have this uid. It can be the uid of a mapped one, too."""
    number, ranges = _overflow("uid")
    return uid == number and [0, 0, NO_ID] not in ranges


def _overflow(kind: str) -> tuple[int, list[list[int]]]:
    """The number of all that are not mapped (user_namespaces(7)), and the ranges of those that are.

    The number is ``NO_ID`` if /proc does not have both.
    """
    try:
        number = int(read_text(f"/proc/sys/kernel/overflow{kind}"))
        return number, [[*map(int, line.split())] for line in read_lines(f"/proc/self/{kind}_map")]
    except OSError:
        return NO_ID, []
