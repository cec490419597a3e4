"""Pairs of connected unix sockets."""

from __future__ import annotations

from .._native.ffi import checked, ffi, native
from .._support.lazy import socket
from .._support.sockets import blocking


def pair(kind: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two connected unix sockets on numbers above 2; stream sockets by default.

    ``socket.socketpair`` of gevent creates an event loop for the calling thread, which remains
    after its end.
    """
    kind = int(socket.SOCK_STREAM if kind is None else kind)
    fds = ffi.new("int[2]")
    checked(native.pn_socket_pair(kind, fds), "socketpair")
    ours, theirs = (blocking(socket.socket(fileno=fd)) for fd in fds)
    return ours, theirs
