"""Relay between a CRIU that serves or fetches lazy pages and the control connection.

CRIU gets one end of a socketpair instead of a network connection. Therefore CRIU does not listen,
pages are encrypted, and CRIU's closing messages are not forwarded: a lazy-pages daemon sends
"close" even if it fails, and a CRIU that serves pages kills the process if the connection ends
(both in its source, and observed with 4.2.1). This side determines how serving ends: end of file
kills the process, an invalid command resumes it.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct

from .._support import unpatched
from .._support.closing import Closing
from .._support.lazy import socket
from .._support.light_typing import Any
from .._support.unpatched import Event, Thread, close
from .._system.socket_pair import pair
from ..errors import CriuError
from .control_channel import LARGEST_PIECE, Channel, Kind
from .watchdog_process import INVALID_COMMAND

CLOSE = struct.pack("=I", 0x1023)
FORCE_CLOSE = struct.pack("=I", 0x1024)
"""Last command of a page server's client (``criu/page-xfer.c``); its other fields are 0."""

DONE = struct.pack("=i", 0)
"""The server's answer to it."""

BUFFER_SIZE = 4 * 2**20
"""Bytes requested for each buffer of the socketpair."""


class PageRelay(Closing):
    """One end of the page connection."""

    def __init__(self, *, serves: bool) -> None:
        """``serves``: the CRIU at this end has the pages."""
        self._serves = serves
        self.ours, self.theirs = pair()
        """CRIU's end; the caller closes it after CRIU has received it."""
        for end in (self.ours, self.theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_SIZE)
        self.requested = Event()
        """Set when the peer has sent something."""
        self.moved = 0
        """Bytes of the pages and their headers, in the direction of the pages."""
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread: Any = None

    def start(self, channel: Channel) -> None:
        """Start to forward the data of the CRIU at this end."""
        self._thread = Thread(target=self._pump, args=(channel,), name="page relay", daemon=True)
        self._thread.start()

    def put(self, data: bytes | bytearray) -> None:
        """Send data of the other CRIU to the one at this end; ignored if that has ended."""
        self.requested.set()
        if not self._serves:
            self.moved += len(data)
        with contextlib.suppress(OSError):
            self.ours.sendall(data)

    def abort_serving(self) -> None:
        """Make the CRIU that serves resume the process."""
        with contextlib.suppress(OSError):
            self.ours.sendall(INVALID_COMMAND)

    def finish(self) -> None:
        """End the connection: a CRIU that serves kills the process, one that fetches fails."""
        with contextlib.suppress(OSError):
            self.ours.shutdown(socket.SHUT_WR)

    def _pump(self, channel: Channel) -> None:
        poll = unpatched.poll()
        poll.register(self.ours, select.POLLIN)
        poll.register(self._closing, select.POLLIN)
        buffer = bytearray(LARGEST_PIECE)
        while True:
            poll.poll()
            try:
                size = self.ours.recv_into(buffer, 0, socket.MSG_DONTWAIT)
            except OSError:
                return  # the connection has ended, or the other descriptor is ready
            if not size:
                return
            data = memoryview(buffer)[:size]
            if self._serves:
                self.moved += size
            else:
                data = self._without_end(data)
            # Read even if it cannot be sent: a CRIU that is blocked in a write reads no commands.
            with contextlib.suppress(CriuError):
                if data:
                    channel.send(Kind.PAGES, data)

    def _without_end(self, data: memoryview) -> memoryview:
        """Remove and answer the "close" command at the end of a daemon's data."""
        for size in (32, 24):  # since 4.2, and before
            last = bytes(data[-size:])
            if len(last) == size and last[:4] in (CLOSE, FORCE_CLOSE) and not any(last[4:]):
                with contextlib.suppress(OSError):
                    self.ours.sendall(DONE)
                return data[:-size]
        return data

    def close(self) -> None:
        """Close both ends. A second call does nothing."""
        if self.ours.fileno() < 0:
            return
        os.eventfd_write(self._closing, 1)
        with contextlib.suppress(OSError):
            self.ours.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self.ours.close()
        self.theirs.close()
        close(self._closing)
