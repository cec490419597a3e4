"""Periodic timerfds that were due at a dump: CRIU saves them with the value 0, which disarms them.

While an expiry of a periodic timerfd is unread, the kernel shows 0 as the remaining time. CRIU sets
that at the restore, and the timer never fires again (measured with 4.2.1). This module sets the
remaining time to the interval, in ``files.img``, while the dumped processes are frozen. A disarmed
timer has no expiries, and is not changed. CRIU itself does so for the timers of ``setitimer`` and
``timer_create`` (``criu/timer.c``).
"""

from __future__ import annotations

import os

from .._wire.fields import messages_of
from .._wire.protobuf import message
from .changed_image import fields_of, replace_image

NAME = "files.img"

_TYPE, _TIMERFD, _ENTRY = 1, 17, 12
"""``fdinfo.proto``: the field with a file's type, the type of a timerfd, and the field of its
entry."""
_IS_TIMERFD = message((_TYPE, _TIMERFD))
"""The beginning of a timerfd's entry: CRIU writes fields in the order of their numbers."""
_TICKS, _VALUE, _INTERVAL = 5, (7, 8), (9, 10)
"""``timerfd.proto``: the number of unread expirations; seconds and nanoseconds of value and
interval."""


def rearm(directory: int) -> None:
    """Rearm the periodic timerfds of a dump that were due.

    An image of an unexpected form is not changed.
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
            for each in messages_of(data)
        ]
    except (IndexError, KeyError, ValueError):
        return
    if [new for _, new in changed if new is not None]:
        replace_image(directory, NAME, data[:8], [new or old for old, new in changed])


def _rearmed(entry: bytes) -> bytes | None:
    """The entry of the rearmed timer; None: it needs no change."""
    fields = fields_of(entry)
    timer = next((value for number, value in fields if number == _ENTRY), None)
    if not isinstance(timer, bytes):
        return None
    parts = fields_of(timer)
    numbers = dict(parts)
    if not numbers[_TICKS] or any(map(numbers.get, _VALUE)) or not any(map(numbers.get, _INTERVAL)):
        return None
    remaining = {at: numbers[of] for at, of in zip(_VALUE, _INTERVAL, strict=True)}
    timer = message(*((number, remaining.get(number, value)) for number, value in parts))
    return message(*((number, timer if number == _ENTRY else value) for number, value in fields))
