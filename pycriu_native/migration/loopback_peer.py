"""Owner of the other end of a TCP connection over loopback.

TCP has no peer credentials as unix sockets have. But over loopback both ends are sockets of one
network namespace, and the kernel lists the owner of each (``/proc/net/tcp``). A closed socket is
listed as root's, so only established ones are considered.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket

from .._system.inet_sockets import ESTABLISHED, tcp_sockets, unmapped
from .._system.trusted_path import trusted_uid


def foreign_owner(sock: socket.socket) -> str | None:
    """Describe the owner of the other end if it is on loopback and neither root nor the caller."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    here = sock.getsockname()
    if not is_loopback(here):
        return None
    owner = None
    with contextlib.suppress(OSError):  # the peer has disconnected
        owner = _owner(sock.getpeername(), here)
    if owner is None:
        return "an unknown user"
    # A user who became root by sudo has the same rights as root.
    return None if owner in (0, os.geteuid(), trusted_uid()) else f"user {owner}"


def _owner(own: tuple[object, ...], other: tuple[object, ...]) -> int | None:
    """Uid of the owner of the established socket with these two addresses."""
    expected = (_plain(own), _plain(other))
    for sock in tcp_sockets("thread-self"):
        if sock.state == ESTABLISHED and expected == (_plain(sock.local), _plain(sock.remote)):
            return sock.uid
    return None


def is_loopback(address: tuple[object, ...]) -> bool:
    """Whether an address of the ``socket`` module is one of loopback."""
    return ipaddress.ip_address(_plain(address)[0]).is_loopback


def _plain(address: tuple[object, ...]) -> tuple[str, object]:
    """Address and port, without a scope; a mapped IPv4 address in its own notation."""
    return unmapped(str(address[0]).partition("%")[0]), address[1]
