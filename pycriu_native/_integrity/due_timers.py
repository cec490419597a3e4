"""Periodic timerfds that were due at a dump: CRIU saves them with the value 0, which disarms them.

While an expiry of a periodic timerfd was not read, the kernel shows 0 as the time that is left, and
CRIU sets that at the restore: the timer never fires again (seen with 4.2.1). Here the time left
becomes the interval, in ``files.img``, while the dumped processes still stand frozen. One that
is disarmed has no expiries, and stays as it is. CRIU does the same itself for the timers of
``setitimer`` and ``timer_create`` (``criu/timer.c``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from .._wire.protobuf import image, message

NAME = "files.img"
PARTIAL = "files.img.partial"

_TYPE, _TIMERFD, _ENTRY = 1, 17, 12
"""Of ``fdinfo.proto``: the field with a file's type, that of a timerfd, and its field."""
_IS_TIMERFD = message((_TYPE, _TIMERFD))
"""How the entry of a timerfd begins: CRIU writes fields in the order of their numbers."""
_TICKS, _VALUE, _INTERVAL = 5, (7, 8), (9, 10)
"""Of ``timerfd.proto``: expiries that were not read; seconds and nanoseconds."""

_Fields = list[tuple[int, int | bytes]]


def rearm(directory: int) -> None:
    """Have the periodic timerfds of a dump that were due fire again after the restore.

    An image of another form than expected is left as it is.
    """
    try:
        fd = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return  # CRIU before 3.3, or a process without files
    with open(fd, "rb") as file:
        data = file.read()
    if _IS_TIMERFD not in data:
        return
    try:
        changed = [
            (each, _rearmed(each) if each.startswith(_IS_TIMERFD) else None)
            for each in _messages(data)
        ]
    except (IndexError, KeyError, ValueError):
        return
    if [new for _, new in changed if new is not None]:
        _replace(directory, data[:8], [new or old for old, new in changed])


def _replace(directory: int, head: bytes, entries: list[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(PARTIAL, flags, 0o600, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            file.write(image(*entries, magic=head))
        os.replace(PARTIAL, NAME, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(PARTIAL, dir_fd=directory)
        raise


def _messages(data: bytes) -> Iterator[bytes]:
    """The messages of an image, behind its two magic numbers, each after its length."""
    at = 8
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            raise ValueError("cut short")
        yield data[at + 4 : end]
        at = end


def _rearmed(entry: bytes) -> bytes | None:
    """The entry of a timerfd with one that is armed; None: it needs no change."""
    fields = _fields(entry)
    timer = next((value for number, value in fields if number == _ENTRY), None)
    if not isinstance(timer, bytes):
        return None
    parts = _fields(timer)
    numbers = dict(parts)
    if not numbers[_TICKS] or any(map(numbers.get, _VALUE)) or not any(map(numbers.get, _INTERVAL)):
        return None
    remaining = {at: numbers[of] for at, of in zip(_VALUE, _INTERVAL, strict=True)}
    timer = message(*((number, remaining.get(number, value)) for number, value in parts))
    return message(*((number, timer if number == _ENTRY else value) for number, value in fields))


def _fields(data: bytes) -> _Fields:
    """The fields of a message, in order. ``ValueError``: it has others than numbers and bytes."""
    result: _Fields = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            number, at = _varint(data, at)
            result.append((key >> 3, number))
        elif key & 7 == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("cut short")
            result.append((key >> 3, data[at : at + size]))
            at += size
        else:
            raise ValueError(f"a field of another kind: {key & 7}")
    return result


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
