"""The connection to a CRIU process: one socket, and the ways to end its use.

Every way of reaching CRIU returns a :class:`Connection`. ``WorkerConnection`` in ``worker.py``
also owns the process.

===============  ========  ================================  ===========================
method           socket    process                           set afterwards
===============  ========  ================================  ===========================
``close``        closed    stays owned                       nothing
``wait``         closed    reaped; killed after a timeout    ``status``, ``final_stderr``
``close_async``  closed    reaped later, by the pool         ``final_stderr``
``detach``       closed    runs on, is not reaped            ``final_stderr``
===============  ========  ================================  ===========================

``close`` may precede each of the other three. The first of those three decides what happens to the
process; all later calls do nothing. ``kill`` aborts the work; one of the three must follow it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from .._support.lazy import socket
from .._support.sockets import blocking
from .._support.unpatched import close

SEND_BUFFER = 64 * 2**20
"""Size of the socket's send buffer in bytes: a request larger than the default (about 208 KiB)
fails."""


def widen(sock: socket.socket) -> None:
    """Enlarge the send buffer for large requests, beyond the system's limit where permitted."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, 32, SEND_BUFFER)  # SO_SNDBUFFORCE
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


class Connection:
    """A connection to a CRIU process that the caller or a service has started.

    It owns the socket only, so that ``wait``, ``close_async`` and ``detach`` all do what ``close``
    does.
    """

    pid = 0
    """The process, if this connection started it; else 0."""
    pidfd = -1
    """A pidfd of that process; -1: there is none, or the process is not owned any more."""
    on_begin: Callable[[], object] | None = None
    """Called once, before the reply to the first notification: CRIU has tested the kernel, and has
    not begun its work."""
    on_success: Callable[[], object] | None = None
    """Called once, when CRIU's response says that its work has succeeded, before the rest of the
    call; not if the call was interrupted before. It raises nothing."""

    def __init__(self, fd: int, *, program: str) -> None:
        self.fd = fd
        """The socket's descriptor; -1: it is closed."""
        self._sock: socket.socket | None = None
        self.program = program
        """The process's name in messages."""
        self.status: int | None = None
        """Its exit status once it was reaped; negative for a signal, None if unknown."""
        self.final_stderr = ""
        """Its standard output and error up to the end of the connection."""

    def sock(self) -> socket.socket:
        """The socket as an object. Few calls need it, and its module takes long to import."""
        if self._sock is None:
            self._sock = blocking(socket.socket(fileno=self.fd))
        return self._sock

    def has_ended(self, timeout: float = 0.0) -> bool:
        """Whether the process has ended; waits for at most ``timeout`` seconds."""
        return False

    def kill(self) -> None:
        """Abort the work: kill an owned process; else shut down the socket."""
        if self.fd < 0:
            return
        with contextlib.suppress(OSError):
            self.sock().shutdown(socket.SHUT_RDWR)

    def wake(self) -> None:
        """Continue the process if a signal has stopped it: it could not undo its work."""

    def close(self) -> None:
        """Close the socket, which makes CRIU end."""
        fd, self.fd = self.fd, -1
        if self._sock is not None:
            self._sock.close()
        elif fd >= 0:
            close(fd)

    def __del__(self) -> None:
        if self.fd >= 0 and self._sock is None:  # a socket object closes itself
            close(self.fd)

    def wait(self) -> None:
        """Close, wait until the process has ended, and reap it."""
        self.close()

    def close_async(self) -> None:
        """Close, and leave waiting and reaping to the pool; without a pool as :meth:`wait`."""
        self.close()

    def detach(self) -> None:
        """Close, and neither wait for the process nor reap it: with ``exec_cmd`` it runs that
        program now; in a forked child it belongs to the parent.
        """
        self.close()
