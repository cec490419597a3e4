"""The open connection to a CRIU that every way of reaching one comes down to."""

from __future__ import annotations

import contextlib

from .._support.lazy import socket
from .._system.descriptors import above_stdio

SEND_BUFFER = 64 * 2**20
"""Bytes asked for the socket: a request larger than its buffer (about 208 KiB) would fail."""


def widen(sock: socket.socket) -> None:
    """Make room for large requests: beyond the system's limit where we may."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, 32, SEND_BUFFER)  # SO_SNDBUFFORCE
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection as CRIU wants it, on numbers above 2."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as undo:
        undo.enter_context(ours)
        undo.enter_context(theirs)
        pair = _above_stdio(ours), _above_stdio(theirs)
        undo.pop_all()
        return pair


def _above_stdio(sock: socket.socket) -> socket.socket:
    if sock.fileno() > 2 and type(sock) is socket.socket:
        return sock
    sock = socket.socket(fileno=above_stdio(sock.detach()))
    sock.setblocking(True)  # those of gevent and eventlet do not
    return sock


class Connection:
    """A connection to a CRIU process that is not ours: the socket, owned.

    A worker of our own is more than that: ``WorkerConnection`` in ``worker.py``.
    """

    pid = 0
    """The process, where it is ours to end."""
    pidfd = -1
    """A descriptor that becomes readable when it ends; -1: only the socket tells."""

    def __init__(self, sock: socket.socket, *, program: str) -> None:
        self.sock = sock
        self.program = program
        """What to call it in messages."""
        self.status: int | None = None
        """Its exit status once it was reaped; negative for a signal, None if unknown."""
        self.final_stderr = ""
        """What it had written to its standard output and error when it ended."""

    def has_ended(self, timeout: float = 0.0) -> bool:
        """Whether the process has ended, waiting for at most this many seconds."""
        return False

    def kill(self) -> None:
        """End what can be ended: here the conversation."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def wake(self) -> None:
        """Have the process go on if somebody has stopped it: it cannot undo its work otherwise."""

    def close(self) -> None:
        """Close our end, which tells CRIU that there is nothing more to do."""
        self.sock.close()

    def wait(self) -> None:
        """Give back all that is ours."""
        self.close()

    def close_async(self) -> None:
        """:meth:`reap`, where nobody cares when the process ends: that may be waited for later."""
        self.wait()

    def detach(self) -> None:
        """Close what is ours, and leave the process alone: with ``exec_cmd`` it has a new life."""
        self.close()
