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
import sys

from .._system import trusted_path

ESTABLISHED = "01"
MAPPED = bytes(10) + b"\xff\xff"
"""What stands before an address of IPv4 where a socket of IPv6 has it."""


def foreign_owner(sock: socket.socket) -> str | None:
    """Who the other end belongs to, in words, if that is on loopback and neither root nor us."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    here = sock.getsockname()
    if not ipaddress.ip_address(_packed(here[0])).is_loopback:
        return None
    owner = None
    with contextlib.suppress(OSError):  # it is gone
        owner = _owner(sock.getpeername(), here)
    if owner is None:
        return "nobody that can be found"
    # Who became root by sudo could do it as root, too.
    return None if owner in (0, os.geteuid(), trusted_path._trusted()) else f"user {owner}"


def _owner(own: tuple[object, ...], other: tuple[object, ...]) -> int | None:
    """Whose the established socket with these two addresses is."""
    for name, shown in (("tcp", _shown), ("tcp6", _shown6)):
        expected = [shown(own), shown(other), ESTABLISHED]
        with contextlib.suppress(OSError), open(f"/proc/thread-self/net/{name}") as table:
            for line in table:
                words = line.split()
                if words[1:4] == expected:
                    return int(words[7])
    return None


def _packed(address: object) -> bytes:
    """The bytes of an address; of IPv4, also where a socket of IPv6 has it."""
    packed = ipaddress.ip_address(str(address).partition("%")[0]).packed
    return packed.removeprefix(MAPPED)


def _shown(address: tuple[object, ...]) -> str:
    """An address as the kernel lists it: in words of the machine."""
    return _in_words(_packed(address[0]), address[1])


def _shown6(address: tuple[object, ...]) -> str:
    packed = _packed(address[0])
    return _in_words(packed if len(packed) == 16 else MAPPED + packed, address[1])


def _in_words(packed: bytes, port: object) -> str:
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"
