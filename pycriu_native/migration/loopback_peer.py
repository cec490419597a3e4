"""Whose the other end of a TCP connection is, when that is on this machine.

TCP tells nobody's name, as a unix socket does. But over loopback both ends are sockets of one
network namespace, and the kernel lists whose each is (``/proc/net/tcp``). One that was closed is
listed as root's: only an established one says anything.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket

from .._system.inet_sockets import ESTABLISHED, tcp_sockets, unmapped
from .._system.trusted_path import trusted_uid


def foreign_owner(sock: socket.socket) -> str | None:
    """Who the other end belongs to, in words, if that is on loopback and neither root nor us."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    here = sock.getsockname()
    if not ipaddress.ip_address(_plain(here)[0]).is_loopback:
        return None
    owner = None
    with contextlib.suppress(OSError):  # it is gone
        owner = _owner(sock.getpeername(), here)
    if owner is None:
        return "nobody that can be found"
    # Who became root by sudo could do it as root, too.
    return None if owner in (0, os.geteuid(), trusted_uid()) else f"user {owner}"


def _owner(own: tuple[object, ...], other: tuple[object, ...]) -> int | None:
    """Whose the established socket with these two addresses is."""
    expected = (_plain(own), _plain(other))
    for sock in tcp_sockets("thread-self"):
        if sock.state == ESTABLISHED and expected == (_plain(sock.local), _plain(sock.remote)):
            return sock.uid
    return None


def _plain(address: tuple[object, ...]) -> tuple[str, object]:
    """Address and port, without a scope; a mapped IPv4 address in its own notation."""
    return unmapped(str(address[0]).partition("%")[0]), address[1]
