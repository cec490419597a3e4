"""Between a CRIU that serves or fetches lazy pages and the control connection.

CRIU gets one end of a socketpair in place of a network connection. So nothing of it listens,
pages are encrypted with everything else, and its words at the end do not get through: a
lazy-pages daemon says that it is done when it fails as well, and a CRIU that serves pages gives
the process up when the connection merely ends (both seen in its source, and with 4.2.1). What
ends the serving is said by us: its end of file to give the process up, nonsense to let it run on.
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
from .._support.unpatched import Event, Thread
from .._system.descriptors import above_stdio
from ..errors import CriuError
from .control_channel import LARGEST_PIECE, Channel, Kind
from .watchdog_process import SPOIL

CLOSE = struct.pack("=I", 0x1023)
FORCE_CLOSE = struct.pack("=I", 0x1024)
"""What a client of a page server says at its end (``criu/page-xfer.c``); all else in it is 0."""

DONE = struct.pack("=i", 0)
"""What the server answers."""

ROOM = 4 * 2**20
"""Bytes asked for each buffer of the socketpair."""


class PageRelay(Closing):
    """One end of the page connection."""

    def __init__(self, *, serves: bool) -> None:
        """``serves``: the CRIU at our end is the one that has the pages."""
        self._serves = serves
        ours, theirs = socket.socketpair()
        self.ours = socket.socket(fileno=above_stdio(ours.detach()))
        self.theirs = socket.socket(fileno=above_stdio(theirs.detach()))
        """CRIU's end; to be closed here once CRIU has it."""
        for end in (self.ours, self.theirs):
            end.setblocking(True)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        self.asked = Event()
        """The other side has sent something."""
        self.moved = 0
        """Bytes of pages and of what is said about them, in their direction."""
        self._channel: Channel | None = None
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread: Any = None

    def start(self, channel: Channel) -> None:
        """Begin to pass on what our CRIU says."""
        self._channel = channel
        self._thread = Thread(target=self._pump, name="migration pages", daemon=True)
        self._thread.start()

    def put(self, data: bytes | bytearray) -> None:
        """Give our CRIU what the other one says. A CRIU that is gone needs nothing more."""
        self.asked.set()
        if not self._serves:
            self.moved += len(data)
        with contextlib.suppress(OSError):
            self.ours.sendall(data)

    def abort_serving(self) -> None:
        """Have the CRIU that serves let the process run on."""
        with contextlib.suppress(OSError):
            self.ours.sendall(SPOIL)

    def finish(self) -> None:
        """End the connection: a CRIU that serves gives the process up, one that fetches fails."""
        with contextlib.suppress(OSError):
            self.ours.shutdown(socket.SHUT_WR)

    def _pump(self) -> None:
        poll = unpatched.poll()
        poll.register(self.ours, select.POLLIN)
        poll.register(self._closing, select.POLLIN)
        buffer = bytearray(LARGEST_PIECE)
        assert self._channel is not None
        while True:
            poll.poll()
            try:
                size = self.ours.recv_into(buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return  # it was the other descriptor
            except OSError:
                return
            if not size:
                return
            data = memoryview(buffer)[:size]
            if self._serves:
                self.moved += size
            else:
                data = self._without_end(data)
            # What cannot be passed on any more is read all the same: who waits for room to
            # write would not listen.
            with contextlib.suppress(CriuError):
                if data:
                    self._channel.send(Kind.PAGES, data)

    def _without_end(self, data: memoryview) -> memoryview:
        """What a daemon asks, without its last word, which is answered here."""
        for size in (32, 24):  # since 4.2, and before
            last = bytes(data[-size:])
            if len(last) == size and last[:4] in (CLOSE, FORCE_CLOSE) and not any(last[4:]):
                with contextlib.suppress(OSError):
                    self.ours.sendall(DONE)
                return data[:-size]
        return data

    def close(self) -> None:
        """Give both ends back. Twice does nothing."""
        if self.ours.fileno() < 0:
            return
        os.eventfd_write(self._closing, 1)
        with contextlib.suppress(OSError):
            self.ours.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self.ours.close()
        self.theirs.close()
        os.close(self._closing)
