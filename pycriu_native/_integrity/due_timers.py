"""Periodic timerfds that were due at a dump: CRIU saves them with the value 0, which disarms them.

While an expiry of a periodic timerfd is unread, the kernel shows 0 as the remaining time. CRIU sets
that at the restore, and the timer never fires again (measured with 4.2.1). This module sets the
remaining time to the interval, in ``files.img``, while the dumped processes are frozen. A disarmed
timer has no expiries, and is not changed. CRIU itself does so for the timers of ``setitimer`` and
``timer_create`` (``criu/timer.c``).
"""

from __future__ import annotations

import contextlib

from .._wire.protobuf import message
from .changed_image import Value, change_image, fields_of, replaced

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

    An image of an unexpected form is not changed. Without files CRIU writes none.
    """
    with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
        change_image(
            directory,
            "files.img",
            lambda entry: replaced(entry, _ENTRY, _rearmed),
            beginning=_IS_TIMERFD,
        )


def _rearmed(timer: Value) -> Value:
    """A timer, rearmed if it was due."""
    fields = fields_of(timer)
    numbers = dict(fields)
    if not numbers[_TICKS] or any(map(numbers.get, _VALUE)) or not any(map(numbers.get, _INTERVAL)):
        return timer
    remaining = {at: numbers[of] for at, of in zip(_VALUE, _INTERVAL, strict=True)}
    return message(*((number, remaining.get(number, value)) for number, value in fields))
