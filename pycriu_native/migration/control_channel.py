"""The control connection of a migration: frames over one socket, with a watch on the peer.

A frame is a kind (one byte), a length (four bytes, big-endian) and that many bytes: a message
(JSON), a piece of an image file, a piece of the page connection, or a keepalive. Both sides send
``MAGIC`` first, so that no other protocol is accepted. All lengths are bounded.

One thread reads; another sends a keepalive every quarter of ``peer_timeout`` and checks the clock.
The channel is lost when nothing was received for ``peer_timeout`` seconds, when the connection
ends, or when the peer breaks the protocol; every wait on it then raises the reason. ``on_end`` is
called when the channel is lost or the peer cancels; possibly more than once, and on any thread.

Synchronization: ``send`` and ``send_message`` may be called from any thread, ``expect`` from one.
"""

from __future__ import annotations

import contextlib
import json
import math
import select
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from enum import IntEnum
from typing import Any

from .._support import unpatched
from .._support.closing import Closing
from .._support.lazy import socket
from .._support.unpatched import Condition, Event, Lock, Thread, get_ident
from ..errors import CriuError, DeadlineError, MigrationError, PeerLostError
from .deadline import LOOK, MigrationDeadline

MAGIC = b"pycriu-native migration 1\n"
"""The first bytes of each side; the number is the version of the protocol."""

HEADER = struct.Struct(">BI")
LARGEST_MESSAGE = 64 * 1024
LONGEST_REASON = LARGEST_MESSAGE // 16
"""Characters of a reason; JSON has at most 12 bytes for one."""

LARGEST_PIECE = 2**20
WAITING_FRAMES = 16
"""Limit of received frames in the queue; the reader then waits."""

CLOSE_TIMEOUT = 5.0
"""Seconds to wait for the peer to close the connection, after the last message to it."""


class Kind(IntEnum):
    """Kind of a frame."""

    MESSAGE = 1
    PIECE = 2
    PAGES = 3
    ALIVE = 4


LARGEST = {
    Kind.MESSAGE: LARGEST_MESSAGE,
    Kind.PIECE: LARGEST_PIECE,
    Kind.PAGES: LARGEST_PIECE,
    Kind.ALIVE: 0,
}

Message = dict[str, Any]
Frame = bytes | bytearray | Message
"""A piece of a file, or a message."""


class Channel(Closing):
    """One end of the connection. Owns the socket, and closes it."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        peer_timeout: float,
        until: MigrationDeadline,
        on_pages: Callable[[bytes | bytearray], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._sock = sock
        self._peer_timeout = peer_timeout
        self._until = until
        self._on_pages = on_pages
        self._on_end = on_end
        self.lost: CriuError | None = None
        """Why the channel is lost; None if it is not."""
        self.refused: MigrationError | None = None
        """The peer's cancellation; set before the frames that it sent earlier are processed."""
        self._frames: deque[Frame] = deque()
        self._frames_changed = Condition()
        self._sending = Lock()
        # An SSL object may be used by one thread at a time.
        self._touching: Any = Lock() if isinstance(sock, ssl.SSLSocket) else nullcontext()
        self._losing = Lock()
        self._over = Event()
        self._received_at = time.monotonic()
        self._reading = True
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # the caller's socket may not be TCP
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._threads = [
            Thread(target=body, name=f"migration {name}", daemon=True)
            for name, body in (("reader", self._read), ("watch", self._watch))
        ]
        for thread in self._threads:
            thread.start()

    # ---- sending ----

    def send_message(self, word: str, **more: Any) -> None:
        """Send a message. Raises the reason if the channel is lost."""
        data = json.dumps({"word": word, **more}).encode()
        self.send(Kind.MESSAGE, data)

    def send_failed(self, why: str) -> None:
        """Send that this side has failed; of the reason ``LONGEST_REASON`` characters are sent."""
        self.send_message("failed", why=why[:LONGEST_REASON])

    def send(self, kind: Kind, data: bytes | bytearray | memoryview) -> None:
        """Send a frame. Raises the reason if the channel is lost."""
        assert len(data) <= LARGEST[kind]
        with self._sending:
            if len(data) < 65536:
                self._put(HEADER.pack(kind, len(data)) + data)
            else:
                self._put(HEADER.pack(kind, len(data)))
                self._put(data)

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        remaining = memoryview(data)
        while remaining:
            if self.lost is not None:
                raise self.lost
            try:
                with self._touching:
                    remaining = remaining[self._sock.send(remaining) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._poll(select.POLLOUT, 0.2)
                try:
                    self._until.check()
                except DeadlineError as error:
                    raise self.lose(error) from None  # half a frame was sent: no other can follow
            except ssl.SSLWantReadError:
                self._poll(select.POLLIN, 0.2)
            except (OSError, ValueError) as error:
                raise self.lose(PeerLostError(f"the connection failed: {error}")) from None

    # ---- waiting ----

    def expect(self, *words: str, within: float = math.inf) -> Message:
        """Wait for one of these messages, for at most ``within`` seconds.

        The peer's ``failed`` raises ``MigrationError``, any other frame ``PeerLostError``. A lost
        channel raises its reason.
        """
        frame = self._take(time.monotonic() + within)
        if isinstance(frame, dict) and frame["word"] in words:
            return frame
        sent = repr(frame["word"]) if isinstance(frame, dict) else "a piece of a file"
        raise self.lose(PeerLostError(f"the peer sent {sent} in place of {words}"))

    def expect_piece(self) -> bytes | bytearray:
        """Wait for a piece of a file. Raises as ``expect``."""
        frame = self._take()
        if not isinstance(frame, dict):
            return frame
        what = f"{frame['word']!r} in place of a piece of a file"
        raise self.lose(PeerLostError(f"the peer sent {what}"))

    def check_deadline(self) -> None:
        """Raise ``DeadlineError`` if the deadline has passed; the channel stays usable."""
        self._until.check()

    def _take(self, until: float = math.inf) -> Frame:
        while True:
            with self._frames_changed:
                if not self._frames and self.lost is None:
                    self._frames_changed.wait(LOOK)
                if self._frames:
                    self._frames_changed.notify_all()
                    frame = self._frames.popleft()
                    if isinstance(frame, dict) and frame["word"] == "failed":
                        raise _refusal(frame)
                    return frame
                if self.lost is not None:
                    raise self.lost
            self.check_deadline()
            if time.monotonic() > until:
                raise self.lose(PeerLostError("the peer no longer sends anything"))

    # ---- the end ----

    def part(self, failure: str | None = None) -> None:
        """Send the reason of a failure if possible, wait until everything has arrived, and close.

        There is no wait for a peer that cancelled, since it waits until this end closes.
        """
        with contextlib.suppress(CriuError):
            if failure is not None:
                self.send_failed(failure)
        until = time.monotonic() + CLOSE_TIMEOUT
        while self.lost is None and self.refused is None and time.monotonic() < until:
            # A close with unread data resets the connection, and the last message is lost.
            with self._frames_changed:
                self._frames.clear()
                self._frames_changed.notify_all()
                self._frames_changed.wait(0.05)
        self.close()

    def lose(self, reason: CriuError) -> CriuError:
        """Mark the channel as lost. The first reason is kept, and returned."""
        with self._losing:
            if self.lost is not None:
                return self.lost
            self.lost = reason
        self._over.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with self._frames_changed:
            self._frames_changed.notify_all()
        self._on_end()
        return reason

    def close(self) -> None:
        """Close the connection. A second call does nothing."""
        self._on_end = lambda: None
        self.lose(PeerLostError("the connection is closed"))
        for thread in self._threads:
            if thread.ident != get_ident():
                thread.join()
        self._sock.close()

    # ---- the threads ----

    def _watch(self) -> None:
        while not self._over.wait(self._peer_timeout / 4):
            now = time.monotonic()
            if self._reading and now - self._received_at > self._peer_timeout:
                why = f"nothing was received from the peer for {self._peer_timeout:g} s"
                self.lose(PeerLostError(why))
            elif self._sending.acquire(blocking=False):
                self._sending.release()  # any other frame is a keepalive too
                with contextlib.suppress(CriuError):
                    self.send(Kind.ALIVE, b"")

    def _read(self) -> None:
        try:
            while True:
                number, size = HEADER.unpack(self._get(HEADER.size))
                kind = Kind(number)
                if size > LARGEST[kind]:
                    raise PeerLostError(f"the peer sent {size} bytes at once")
                body = self._get(size)
                self._reading = False
                if kind is Kind.PAGES:
                    self._on_pages(body)
                elif kind is Kind.PIECE:
                    self._keep(body)
                elif kind is Kind.MESSAGE:
                    message = _message(body)
                    if message["word"] == "failed":
                        self.refused = _refusal(message)
                        self._on_end()
                    self._keep(message)
                self._received_at = time.monotonic()
                self._reading = True
        except CriuError as error:
            self.lose(error)
        except Exception as error:
            self.lose(PeerLostError(f"the connection failed: {error}"))

    def _keep(self, frame: Frame) -> None:
        with self._frames_changed:
            self._frames_changed.wait_for(
                lambda: len(self._frames) < WAITING_FRAMES or self.lost is not None
            )
            if self.lost is None:
                self._frames.append(frame)
                self._frames_changed.notify_all()

    def _get(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            if self.lost is not None:
                raise self.lost
            try:
                with self._touching:
                    count = self._sock.recv_into(view)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._poll(select.POLLIN, 1.0)
                continue
            except ssl.SSLWantWriteError:
                self._poll(select.POLLOUT, 1.0)
                continue
            if not count:
                raise PeerLostError("the peer closed the connection")
            self._received_at = time.monotonic()
            view = view[count:]
        return data

    def _poll(self, what: int, seconds: float) -> None:
        poll = unpatched.poll()
        poll.register(self._sock.fileno(), what)
        poll.poll(seconds * 1000)


def greet(sock: socket.socket) -> None:
    """Exchange ``MAGIC`` with the peer; ``PeerLostError`` if it sends anything else.

    The timeout of the socket bounds the whole exchange.
    """
    received = b""
    until = time.monotonic() + (sock.gettimeout() or math.inf)
    try:
        sock.sendall(MAGIC)
        while len(received) < len(MAGIC):
            if time.monotonic() > until:
                raise TimeoutError("timed out")
            more = sock.recv(len(MAGIC) - len(received))
            if not more:
                raise PeerLostError("the peer closed the connection before it sent its greeting")
            received += more
    except OSError as error:
        if isinstance(error, CriuError):
            raise
        raise PeerLostError(f"the peer did not send its greeting: {error}") from None
    if received != MAGIC:
        raise PeerLostError(f"the peer uses another protocol: its first bytes are {received!r}")


def _refusal(body: Message) -> MigrationError:
    return MigrationError(str(body.get("why", "no reason given")), by_peer=True)


def _message(data: bytearray) -> Message:
    try:
        body = json.loads(bytes(data))
    except (ValueError, RecursionError):
        raise PeerLostError("the peer sent an invalid message") from None
    if not isinstance(body, dict) or not isinstance(body.get("word"), str):
        raise PeerLostError("the peer sent a message without its name")
    return body
