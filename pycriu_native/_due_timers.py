"""Periodic timers that were due at a dump: CRIU saves them with the value 0, which disarms them.

While an expiry of a periodic timer has not been taken, the kernel shows 0 as the time that is left
(a timerfd that was not read, an ITIMER_REAL whose SIGALRM is pending), and CRIU sets that at the
restore: the timer never fires again (seen with 4.2.1). Here the time left becomes the interval,
in ``files.img`` and ``core-PID.img``, while the dumped processes still stand frozen. A timerfd
that is disarmed has no expiries; a disarmed itimer has no interval: both stay as they are. POSIX
timers, ITIMER_VIRTUAL and ITIMER_PROF never show 0 while they are armed (``kernel/time/``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from ._imagery import message

_FILE_TYPE, _TIMERFD, _TIMERFD_ENTRY = 1, 17, 12
"""Of ``fdinfo.proto``: the field with a file's type, that of a timerfd, and its field."""
_TICKS, _VALUE, _INTERVAL = 5, (7, 8), (9, 10)
"""Of ``timerfd.proto``: expiries that were not read; seconds and nanoseconds."""
_TASK, _TIMERS, _REAL = 3, 7, 1
"""Of ``core.proto`` and ``timer.proto``: the way to the ITIMER_REAL of a process."""
_ITIMER_INTERVAL, _ITIMER_VALUE = (1, 2), (3, 4)
"""Of ``timer.proto``: seconds and microseconds."""

_Fields = list[tuple[int, int | bytes]]


def rearm(directory: int) -> None:
    """Have the periodic timers of a dump that were due fire again after the restore.

    An image of another form than expected is left as it is.
    """
    for name in os.listdir(directory):
        if name == "files.img":
            _rewrite(directory, name, _file)
        elif name.startswith("core-"):
            _rewrite(directory, name, _core)


def _rewrite(directory: int, name: str, change: Callable[[bytes], bytes | None]) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    with open(fd, "rb") as file:
        data = file.read()
    if change is _file and bytes((_FILE_TYPE << 3, _TIMERFD)) not in data:
        return
    try:
        changed = [(each, change(each)) for each in _messages(data)]
    except (IndexError, ValueError):
        return
    if all(new is None for _, new in changed):
        return
    written = data[:8] + b"".join(
        len(new or old).to_bytes(4, "little") + (new or old) for old, new in changed
    )
    partial = f"{name}.rearmed"
    fd = os.open(
        partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory
    )
    try:
        with open(fd, "wb") as file:
            file.write(written)
        os.replace(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(partial, dir_fd=directory)
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


def _file(entry: bytes) -> bytes | None:
    fields = _fields(entry)
    if (_FILE_TYPE, _TIMERFD) not in fields:
        return None

    def due(timer: bytes) -> bytes | None:
        has_expired = any(number == _TICKS and value for number, value in _fields(timer))
        return _with_value(timer, _VALUE, _INTERVAL) if has_expired else None

    return _inside(entry, due, _TIMERFD_ENTRY)


def _core(entry: bytes) -> bytes | None:
    def due(timer: bytes) -> bytes | None:
        return _with_value(timer, _ITIMER_VALUE, _ITIMER_INTERVAL)

    return _inside(entry, due, _TASK, _TIMERS, _REAL)


def _inside(outer: bytes, change: Callable[[bytes], bytes | None], *path: int) -> bytes | None:
    """A message with a change to one that is inside; None: there is nothing to change."""
    if not path:
        return change(outer)
    fields = _fields(outer)
    for index, (number, value) in enumerate(fields):
        if number == path[0] and isinstance(value, bytes):
            new = _inside(value, change, *path[1:])
            if new is None:
                return None
            fields[index] = number, new
            return message(*fields)
    return None


def _with_value(timer: bytes, value: tuple[int, int], interval: tuple[int, int]) -> bytes | None:
    """A timer whose time left is its interval, if it has none left; else None."""
    fields = _fields(timer)
    numbers = dict(fields)
    if any(numbers[field] for field in value) or not any(numbers[field] for field in interval):
        return None
    new = {at: numbers[of] for at, of in zip(value, interval, strict=True)}
    return message(*((number, new.get(number, old)) for number, old in fields))


def _fields(data: bytes) -> _Fields:
    """The fields of a message, in order. ``ValueError``: it has others than numbers and bytes."""
    found: _Fields = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            number, at = _varint(data, at)
            found.append((key >> 3, number))
        elif key & 7 == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("cut short")
            found.append((key >> 3, data[at : at + size]))
            at += size
        else:
            raise ValueError(f"a field of another kind: {key & 7}")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
