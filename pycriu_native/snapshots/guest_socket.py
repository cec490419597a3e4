"""This process's end of the socket to a program in ``guest.wait()``."""

from __future__ import annotations

import json
import time

from .. import guest
from .._support.lazy import socket
from ..errors import CriuError, DeadlineError
from .uninterrupted import readable_or_interrupted

LINES = (guest.READY, guest.READY_TO_FORK)


def read_ready(end: socket.socket, until: float | None) -> bytes:
    """Wait for the line that a program writes in ``guest.wait()``; empty if it closed the socket.

    Raises ``DeadlineError`` at ``until`` (time.monotonic()), and ``CriuError`` for another line.
    """
    line = b""
    while line not in LINES:
        seconds = None if until is None else until - time.monotonic()
        if not readable_or_interrupted(end.fileno(), seconds=seconds):
            raise DeadlineError("has not called guest.wait() in time")
        data = end.recv(len(guest.READY_TO_FORK) - len(line))
        line += data
        if not data:
            return b""
        if not any(each.startswith(line) for each in LINES):
            raise CriuError(f"wrote {line!r} and not {guest.READY!r}")
    return line


class GuestSocket:
    """The socket to a copy that can be saved. Owned by this object."""

    def __init__(self, end: socket.socket, *, inode: int, number: int | None) -> None:
        self._end = end
        self.inode = inode
        """The inode of the copy's end."""
        self.number = number
        """The descriptor's number in the copy."""
        self._line = b""

    def wait_until_parked(self, until: float | None) -> bytes:
        """Wait for the copy's line. Raises ``CriuError``, ``DeadlineError``."""
        try:
            self._line = self._line or read_ready(self._end, until)
        except (CriuError, DeadlineError) as error:
            raise type(error)(f"the copy {error}") from None
        if not self._line:
            raise CriuError("the copy ended, and did not call guest.wait()")
        return self._line

    def resume(self) -> None:
        """Make ``guest.wait()`` return, without changes."""
        self._line = b""
        start = guest.Start(0, None, None, None, None, "")
        self._end.sendall(json.dumps(start._asdict()).encode() + b"\n")

    def close(self) -> None:
        """Close the socket; a copy in ``guest.wait()`` then ends."""
        self._end.close()
