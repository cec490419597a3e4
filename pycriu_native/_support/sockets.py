"""Blocking sockets, despite ``socket.setdefaulttimeout``, gevent and eventlet.

Each of the three makes the open files of new socket objects non-blocking, for all processes that
have a descriptor of them.
"""

from __future__ import annotations

import os

from .lazy import socket


def blocking(sock: socket.socket) -> socket.socket:
    """Make a socket that no other process has blocking.

    ``accept`` returns a socket of gevent's class, even if the original is called.
    """
    if type(sock) is not socket.socket:
        sock = socket.socket(fileno=sock.detach())
    sock.setblocking(True)
    return sock


def of_another(fd: int) -> socket.socket:
    """A socket object with a duplicate of ``fd``, a copy of another process's descriptor.

    The blocking mode of that process's socket does not change. The attributes ``family``, ``type``
    and ``proto`` are wrong: ``getsockopt`` returns the right ones.
    """
    result = socket.socket(socket.AF_UNIX)
    try:
        os.dup2(fd, result.fileno(), inheritable=False)
    except BaseException:
        result.close()
        raise
    return result
