"""Options of sockets that CRIU does not save: a restored socket has the defaults.

Seen with CRIU 4.2.1. The defaults are those of a new socket, since some are settings of the system.
"""

from __future__ import annotations

import contextlib
import socket

from .context import Context, Findings, lost, on
from .open_sockets import copied_socket, sockets_of

SOL_UDP = 17
_SOCKET = {
    "SO_TIMESTAMP": 29, "SO_TIMESTAMPNS": 35, "SO_TIMESTAMPING": 37, "SO_RXQ_OVFL": 40,
    "SO_PEEK_OFF": 42, "SO_BUSY_POLL": 46, "SO_MAX_PACING_RATE": 47, "SO_ZEROCOPY": 60,
}  # fmt: skip
_IP = {
    "IP_MTU_DISCOVER": 10, "IP_RECVERR": 11, "IP_RECVTTL": 12, "IP_RECVTOS": 13,
    "IP_TRANSPARENT": 19, "IP_RECVORIGDSTADDR": 20, "IP_MINTTL": 21, "IP_BIND_ADDRESS_NO_PORT": 24,
}  # fmt: skip
_IP_MULTICAST = {"IP_MULTICAST_TTL": 33, "IP_MULTICAST_LOOP": 34, "IP_MULTICAST_ALL": 49}
_IPV6 = {
    "IPV6_UNICAST_HOPS": 16, "IPV6_MTU_DISCOVER": 23, "IPV6_RECVERR": 25,
    "IPV6_RECVHOPLIMIT": 51, "IPV6_RECVTCLASS": 66, "IPV6_TCLASS": 67,
}  # fmt: skip
_IPV6_MULTICAST = {"IPV6_MULTICAST_HOPS": 18, "IPV6_MULTICAST_LOOP": 19}
"""Only of UDP: the kernel sets those of an accepted TCP connection from the packets."""
_TCP = {
    "TCP_SYNCNT": 7, "TCP_LINGER2": 8, "TCP_DEFER_ACCEPT": 9, "TCP_CONGESTION": 13,
    "TCP_USER_TIMEOUT": 18, "TCP_NOTSENT_LOWAT": 25,
}  # fmt: skip
_UDP = {"UDP_ENCAP": 100, "UDP_SEGMENT": 103, "UDP_GRO": 104}
OPTIONS = {
    "TCP": ((socket.SOL_SOCKET, _SOCKET), (socket.IPPROTO_IP, _IP), (socket.IPPROTO_TCP, _TCP)),
    "TCPv6": ((socket.SOL_SOCKET, _SOCKET), (socket.IPPROTO_IPV6, _IPV6),
              (socket.IPPROTO_TCP, _TCP)),
    "UDP": ((socket.SOL_SOCKET, _SOCKET), (socket.IPPROTO_IP, _IP | _IP_MULTICAST),
            (SOL_UDP, _UDP)),
    "UDPv6": ((socket.SOL_SOCKET, _SOCKET), (socket.IPPROTO_IPV6, _IPV6 | _IPV6_MULTICAST),
              (SOL_UDP, _UDP)),
}  # fmt: skip
"""Numbers of options by name, for each level of a kind of socket (``linux/in.h``, ``tcp.h``, …)."""
LONGEST = 16
"""Bytes of the longest value."""
SO_DOMAIN, SO_PROTOCOL = 39, 38


def look(context: Context) -> Findings:
    """One finding for each socket with options that are lost."""
    for fd, kind in sockets_of(context):
        if kind not in OPTIONS:
            continue
        with contextlib.suppress(OSError), copied_socket(fd) as sock, _new_one(sock) as new:
            names = [
                name
                for level, options in OPTIONS[kind]
                for name, number in options.items()
                if _value(sock, level, number) != _value(new, level, number)
            ]
            if names:
                yield lost(
                    "socket-options",
                    f"a socket has options that CRIU does not save: {', '.join(names)}",
                    cure="make the program set them again after the restore",
                    **on(fd),
                )


def _new_one(sock: socket.socket) -> socket.socket:
    """A new socket of the same kind."""
    numbers = (SO_DOMAIN, socket.SO_TYPE, SO_PROTOCOL)
    return socket.socket(*(sock.getsockopt(socket.SOL_SOCKET, each) for each in numbers))


def _value(sock: socket.socket, level: int, number: int) -> bytes:
    """The value of an option; empty if the kernel does not have it."""
    with contextlib.suppress(OSError):
        return sock.getsockopt(level, number, LONGEST)
    return b""
