"""The control connection of a migration: frames of our own over one socket, watched.

A frame is a kind (one byte), a length (four bytes, big-endian) and so many bytes: a message
(JSON), a piece of an image file, a piece of the page connection, or a sign of life. Both sides
begin with ``MAGIC``, so that nothing else is taken for a peer. All lengths are bounded.

One thread reads; one sends a sign of life every quarter of ``peer_timeout`` and looks at the clock.
When nothing was heard for ``peer_timeout`` seconds, the connection ends, the peer breaks the
protocol, the channel is lost: everybody who waits on it gets the reason. ``on_end`` is called
then, and when the peer says that it gave up; more than once, and on any thread.

Synchronization: ``send`` and ``tell`` may be called from any thread, ``expect`` from one.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from .._support import unpatched
from .._support.closing import Closing
from .._support.unpatched import Event, Lock, Thread, get_ident
from ..errors import CriuError, DeadlineError, MigrationError, PeerLostError
from .deadline import LOOK, MigrationDeadline

MAGIC = b"pycriu-native migration 1\n"
"""What each side says first; the number is the protocol's."""

HEADER = struct.Struct(">BI")
LARGEST_MESSAGE = 64 * 1024
LARGEST_PIECE = 2**20
WAITING_FRAMES = 16
"""Frames that were read and wait to be taken; then the reader waits too."""

UNTIL_ARRIVED = 5.0
"""Seconds in which the peer closes the connection after it was told that all is over."""


class Kind(IntEnum):
    """What a frame is."""

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
Frame = tuple[Kind, bytes | bytearray | Message]


class Channel(Closing):
    """One end of the connection. Takes the socket over, and closes it."""

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
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._silence = peer_timeout
        self._until = until
        self._on_pages = on_pages
        self._on_end = on_end
        self.lost: CriuError | None = None
        """Why nothing more will come; None while the peer is there."""
        self.refused: MigrationError | None = None
        """The peer has said that it gave up; that may be read before all that came before it."""
        self._frames: queue.Queue[Frame | None] = queue.Queue(WAITING_FRAMES)
        self._sending = Lock()
        self._touching = Lock()  # an SSL object is not for two threads at a time
        self._losing = Lock()
        self._over = Event()
        self._heard = time.monotonic()
        self._reading = True
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # a caller's socket may be of another family
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._threads = [
            Thread(target=body, name=f"migration {name}", daemon=True)
            for name, body in (("reader", self._read), ("watch", self._watch))
        ]
        for thread in self._threads:
            thread.start()

    # ---- sending ----

    def tell(self, word: str, **more: Any) -> None:
        """Send a message. Raises the reason if the channel is lost."""
        data = json.dumps({"word": word, **more}).encode()
        self.send(Kind.MESSAGE, data)

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
                with self._hands():
                    remaining = remaining[self._sock.send(remaining) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._poll(select.POLLOUT, 0.2)
                try:
                    self._until.check()
                except DeadlineError as error:
                    raise self.lose(error) from None  # half a frame is out: no more can follow
            except ssl.SSLWantReadError:
                self._poll(select.POLLIN, 0.2)
            except (OSError, ValueError) as error:
                raise self.lose(PeerLostError(f"the connection broke: {error}")) from None

    # ---- waiting ----

    def expect(self, *words: str, within: float = math.inf) -> Message:
        """Wait for one of these messages, so many seconds.

        The peer's ``failed`` raises ``MigrationError`` unless it is among them; so does
        anything else that comes, and a channel that is lost raises its reason.
        """
        kind, body = self._take(time.monotonic() + within)
        if kind is not Kind.MESSAGE or not isinstance(body, dict):
            raise self.lose(PeerLostError(f"the peer sent {kind.name} in place of {words}"))
        if body["word"] in words:
            return body
        if body["word"] == "failed":
            raise _refusal(body)
        raise self.lose(PeerLostError(f"the peer said {body['word']!r} in place of {words}"))

    def expect_piece(self) -> bytes | bytearray:
        """Wait for a piece of a file."""
        kind, body = self._take()
        if kind is Kind.PIECE:
            assert isinstance(body, (bytes, bytearray))
            return body
        if isinstance(body, dict) and body["word"] == "failed":
            raise _refusal(body)
        raise self.lose(PeerLostError(f"the peer sent {kind.name} in place of a piece of a file"))

    def check_deadline(self) -> None:
        """Raise ``DeadlineError`` once the deadline has passed; the channel is not lost by that."""
        self._until.check()

    def _take(self, until: float = math.inf) -> Frame:
        while True:
            try:
                frame = self._frames.get(timeout=LOOK)
                break
            except queue.Empty:
                self.check_deadline()
                if time.monotonic() > until:
                    raise self.lose(PeerLostError("the peer says nothing any more")) from None
        if frame is None:
            self._frames.put(None)
            assert self.lost is not None
            raise self.lost
        return frame

    # ---- the end ----

    def part(self, word: str = "", why: str = "") -> None:
        """Say a last thing if it can be said, and let all that was said arrive before the end.

        A peer that has said its own last thing waits for our end, and is not waited for.
        """
        with contextlib.suppress(CriuError):
            if word:
                self.tell(word, why=why[: LARGEST_MESSAGE // 8])
        until = time.monotonic() + UNTIL_ARRIVED
        while self.lost is None and self.refused is None and time.monotonic() < until:
            # Who closes with data unread resets the connection, and loses what was said.
            with contextlib.suppress(queue.Empty):
                self._frames.get(timeout=0.05)
        self.close()

    def lose(self, reason: CriuError) -> CriuError:
        """Nothing more will come; the first reason stays, and is returned."""
        with self._losing:
            if self.lost is not None:
                return self.lost
            self.lost = reason
        self._over.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._wake()
        self._on_end()
        return reason

    def _wake(self) -> None:
        while True:
            try:
                self._frames.put_nowait(None)
                return
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._frames.get_nowait()  # nobody may act on what came before

    def close(self) -> None:
        """End the connection. A second time does nothing."""
        self._on_end = lambda: None
        self.lose(PeerLostError("the connection is closed"))
        for thread in self._threads:
            if thread.ident != get_ident():
                thread.join()
        self._sock.close()

    # ---- the threads ----

    def _watch(self) -> None:
        while not self._over.wait(self._silence / 4):
            now = time.monotonic()
            if self._reading and now - self._heard > self._silence:
                why = f"nothing was heard of the peer for {self._silence:g} s"
                self.lose(PeerLostError(why))
            elif self._sending.acquire(blocking=False):
                self._sending.release()  # who sends something else is heard as well
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
                    self._keep((kind, body))
                elif kind is Kind.MESSAGE:
                    message = _message(body)
                    if message["word"] == "failed":
                        self.refused = _refusal(message)
                        self._on_end()
                    self._keep((kind, message))
                self._heard = time.monotonic()
                self._reading = True
        except CriuError as error:
            self.lose(error)
        except Exception as error:
            self.lose(PeerLostError(f"the connection broke: {error}"))

    def _keep(self, frame: Frame) -> None:
        while self.lost is None:
            with contextlib.suppress(queue.Full):
                self._frames.put(frame, timeout=0.2)
                return

    def _get(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            if self.lost is not None:
                raise self.lost
            try:
                with self._hands():
                    count = self._sock.recv_into(view)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._poll(select.POLLIN, 1.0)
                continue
            except ssl.SSLWantWriteError:
                self._poll(select.POLLOUT, 1.0)
                continue
            if not count:
                raise PeerLostError("the peer closed the connection")
            self._heard = time.monotonic()
            view = view[count:]
        return data

    def _hands(self) -> contextlib.AbstractContextManager[Any]:
        return self._touching if self._tls else contextlib.nullcontext()

    def _poll(self, what: int, seconds: float) -> None:
        poll = unpatched.poll()
        poll.register(self._sock.fileno(), what)
        poll.poll(seconds * 1000)


def greet(sock: socket.socket) -> None:
    """Say what we are, and hear that the other side is the same; ``PeerLostError`` if not.

    The socket has a timeout, which is for all of it.
    """
    heard = b""
    until = time.monotonic() + (sock.gettimeout() or math.inf)
    try:
        sock.sendall(MAGIC)
        while len(heard) < len(MAGIC):
            if time.monotonic() > until:
                raise TimeoutError("timed out")
            more = sock.recv(len(MAGIC) - len(heard))
            if not more:
                raise PeerLostError("the peer closed the connection before it said what it is")
            heard += more
    except OSError as error:
        if isinstance(error, CriuError):
            raise
        raise PeerLostError(f"the peer did not say what it is: {error}") from None
    if heard != MAGIC:
        raise PeerLostError(f"the peer speaks another protocol: it began with {heard!r}")


def _refusal(body: Message) -> MigrationError:
    return MigrationError(str(body.get("why", "it does not say why")), by_peer=True)


def _message(data: bytearray) -> Message:
    try:
        body = json.loads(bytes(data))
    except ValueError:
        raise PeerLostError("the peer sent a message that is none") from None
    if not isinstance(body, dict) or not isinstance(body.get("word"), str):
        raise PeerLostError("the peer sent a message without a word")
    return body
