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
import sys

from .._system import trusted_path

ESTABLISHED = "01"
MAPPED = bytes(10) + b"\xff\xff"
"""Prefix of an IPv4 address on an IPv6 socket."""


def foreign_owner(sock: socket.socket) -> str | None:
    """Describe the owner of the other end if it is on loopback and neither root nor the caller."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    here = sock.getsockname()
    if not ipaddress.ip_address(_packed(here[0])).is_loopback:
        return None
    owner = None
    with contextlib.suppress(OSError):  # the peer has disconnected
        owner = _owner(sock.getpeername(), here)
    if owner is None:
        return "an unknown user"
    # A user who became root by sudo has the same rights as root.
    return None if owner in (0, os.geteuid(), trusted_path.trusted_user()) else f"user {owner}"


def _owner(own: tuple[object, ...], other: tuple[object, ...]) -> int | None:
    """Uid of the owner of the established socket with these two addresses."""
    for name, shown in (("tcp", _shown), ("tcp6", _shown6)):
        expected = [shown(own), shown(other), ESTABLISHED]
        with contextlib.suppress(OSError), open(f"/proc/thread-self/net/{name}") as table:
            for line in table:
                words = line.split()
                if words[1:4] == expected:
                    return int(words[7])
    return None


def _packed(address: object) -> bytes:
    """The bytes of an address; IPv4 addresses on IPv6 sockets as IPv4."""
    packed = ipaddress.ip_address(str(address).partition("%")[0]).packed
    return packed.removeprefix(MAPPED)


def _shown(address: tuple[object, ...]) -> str:
    """An address as the kernel lists it: 32-bit words in host byte order."""
    return _in_words(_packed(address[0]), address[1])


def _shown6(address: tuple[object, ...]) -> str:
    packed = _packed(address[0])
    return _in_words(packed if len(packed) == 16 else MAPPED + packed, address[1])


def _in_words(packed: bytes, port: object) -> str:
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"
