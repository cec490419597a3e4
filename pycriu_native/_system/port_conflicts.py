"""Whether a socket of the images can have its address and port here, beside other sockets.

CRIU binds each socket with SO_REUSEADDR and SO_REUSEPORT, and to no device (``open_inet_sk`` and
``inet_bind`` of ``criu/sk-inet.c``).
"""

from __future__ import annotations

import errno
import math
import os

from .._support.frozen_dataclass import dataclass, replace
from .._support.lazy import socket
from .._support.sockets import of_another
from .descriptors import copied
from .inet_sockets import LISTEN, SYN_RECV, InetSocket, inet_sockets, owners_of, unmapped

ANY = ("0.0.0.0", "::")
"""The addresses of a socket that receives on every address."""

TIME_WAIT = 60
"""Seconds that a connection is in TIME_WAIT, at most (``TCP_TIMEWAIT_LEN`` of Linux)."""

_IP_FREEBIND = 15
_TCP, _UDP, _UDPLITE = 6, 17, 136
_TABLES = {_TCP: "tcp", _UDP: "udp", _UDPLITE: "udplite"}


@dataclass(frozen=True, slots=True)
class Binding:
    """The address and port that a socket of IPv4 or IPv6 is bound to."""

    family: int
    protocol: int
    """``IPPROTO_TCP`` or another."""
    address: str
    port: int
    only_ipv6: bool = False
    """Whether it has IPV6_V6ONLY; one with an IPv6 address that is not mapped needs none."""

    def is_here(self) -> bool:
        """Whether a socket can have the address on this host; no port is bound."""
        try:
            with socket.socket(self.family, socket.SOCK_DGRAM) as probe:
                probe.bind((self.address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
        return True

    def reaches(self, address: str, port: int) -> bool:
        """Whether a datagram socket with this address has a route to another one; none is sent."""
        try:
            with socket.socket(self.family, socket.SOCK_DGRAM) as probe:
                if self.family == socket.AF_INET6:
                    probe.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
                probe.bind((self.address, 0))
                probe.connect((address, port))
        except OSError as error:
            return error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH)
        return True

    def collides(self, other: Binding) -> bool:
        """Whether two sockets with the same port receive the same packets.

        That is ``inet_rcv_saddr_equal`` of Linux (``net/ipv4/inet_connection_sock.c``).
        """
        if not self._ip_versions() & other._ip_versions():
            return False
        addresses = {unmapped(self.address), unmapped(other.address)}
        return len(addresses) == 1 or not addresses.isdisjoint(ANY)

    def _ip_versions(self) -> set[int]:
        if self.family == socket.AF_INET or self.address != unmapped(self.address):
            return {4}
        return {6} if self.only_ipv6 or self.address not in ANY else {4, 6}

    def is_taken(self) -> bool:
        """Whether CRIU cannot bind a socket to this port, or has to share it.

        A probe is bound, and closed at once. One of UDP does not share the port: it would receive
        datagrams of the other socket. One of TCP does so only where that is needed: the kernel
        lets in more sockets afterwards (``fastreuseport``).
        """
        if not self._is_refused(share=False):
            return False
        return self.protocol != _TCP or self._is_refused(share=True)

    def _is_refused(self, *, share: bool) -> bool:
        kind = socket.SOCK_STREAM if self.protocol == _TCP else socket.SOCK_DGRAM
        try:
            with socket.socket(self.family, kind, self.protocol) as probe:
                if share:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if self.family == socket.AF_INET6:
                    probe.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, self.only_ipv6)
                probe.bind((self.address, self.port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False


@dataclass(frozen=True, slots=True)
class Conflict:
    """The reason why a socket cannot be bound to its port."""

    pid: int | None = None
    """A process that has the port; None if it is not found: ``/proc/net/tcp`` lacks sockets that
    are bound only."""
    seconds: int | None = None
    """Seconds until the kernel frees the port of connections that have ended (TIME_WAIT)."""
    certain: bool = True
    """Whether the restore fails; it does not if the other socket shares the port."""


def conflict_of(binding: Binding) -> Conflict | None:
    """The conflict of a socket in the network namespace of the caller; None if the port is free."""
    if binding.protocol not in _TABLES or not binding.is_taken():
        return None
    table = _TABLES[binding.protocol]
    others = [
        each
        for each in inet_sockets("self", table, table + "6")
        if each.local[1] == binding.port and binding.collides(_of(each))
    ]
    owners = owners_of(others)
    unknown = False
    for each in others:
        if each.inode in owners:
            pid, fd = owners[each.inode]
            in_the_way = _is_in_the_way(binding, each, pid, fd)
            if in_the_way:
                return Conflict(pid)
            unknown |= in_the_way is None
        else:
            unknown |= bool(each.inode) or each.state == SYN_RECV
    ended = [each.ends_in or TIME_WAIT for each in others if not each.inode]
    if ended and not unknown:
        return Conflict(seconds=math.ceil(max(ended)))
    if binding.protocol == _TCP:
        return Conflict(next((pid for pid, _ in owners.values()), None))
    if others and not unknown:
        return None  # all of them share it
    return Conflict(next((pid for pid, _ in owners.values()), None), certain=False)


def cure_of_ended(seconds: int, port: int) -> str:
    """The cure for a port that only ended connections use."""
    return (
        f"try again in {seconds} s, when the kernel has freed the port; or free it at "
        f"once: ss -K -t state time-wait sport = {port}"
    )


def _of(sock: InetSocket) -> Binding:
    """The binding of a socket of this host; the table does not show IPV6_V6ONLY."""
    address, port = sock.local
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return Binding(family, 0, address, port)


def _is_in_the_way(binding: Binding, sock: InetSocket, pid: int, fd: int) -> bool | None:
    """Whether CRIU cannot bind beside another process's socket; None if it cannot be read."""
    other = _of(sock)
    try:
        with copied(pid, fd) as copy, of_another(copy) as options:
            if other.family == socket.AF_INET6:
                only_ipv6 = options.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                other = replace(other, only_ipv6=bool(only_ipv6))
            reuses = options.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            shares = options.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    except OSError:
        return None
    if not binding.collides(other):
        return False
    return not (reuses and sock.state != LISTEN) and not (shares and sock.uid == os.geteuid())
