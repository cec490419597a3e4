"""Sockets of kinds that CRIU cannot save, of other network namespaces, and with unread messages.

``criu/sockets.c``, ``sk-netlink.c``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from typing import Any

from ..._support.unpatched import closing, readable
from ..._system.process_snapshot import Descriptor
from ...findings import Finding
from . import inet_sockets, unix_sockets
from .context import Context, Findings, lost, on, stops
from .inet_sockets import CLOSE, LISTEN, TIME_WAIT
from .open_sockets import INTERNET, UNIX, copied_socket, inet_socket, sockets_of, tables_of

OTHERS = ("NETLINK", "PACKET")
NO_PROTOCOL = ("MPTCP", "MPTCPv6", "SCTP", "SCTPv6", "SMC", "SMC6", "DCCP", "DCCPv6")
"""Internet protocols that CRIU refuses by name; it refuses all others as a family."""
SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS = 270, 9
"""``linux/netlink.h``."""
SIOCGSKNS = 0x894C
"""``linux/sockios.h``: a descriptor of the network namespace of a socket."""


def look(context: Context) -> Findings:
    result = list(sockets_of(context))
    tables = tables_of(context)
    ours = {fd.stat.st_ino for fd, _ in result}
    networks = context.tree.in_namespaces("net")
    for fd, kind in result:
        about = {"pid": fd.pid, "fd": fd.number}
        if kind in NO_PROTOCOL:
            message = f"a socket's protocol is {kind}, which CRIU cannot save"
            yield stops("protocol", message, failure="mptcp", **about)
        elif kind not in (*UNIX, *INTERNET, *OTHERS):
            message = f"a socket is of a family that CRIU cannot save ({kind})"
            yield stops("socket-family", message, failure="socket-family", **about)
        elif (network := _network_of(fd)) and network not in networks:
            yield _of_another_network(fd, kind)
        elif kind in UNIX:
            yield from unix_sockets.look_at(context, fd, tables, ours)
        elif kind in INTERNET:
            yield from inet_sockets.look_at(context, fd, kind, tables)
        elif kind == "NETLINK":
            yield from _netlink(fd)


def _network_of(fd: Descriptor) -> str:
    """The network namespace of a socket, as its link in /proc; empty if it is not known."""
    with (
        contextlib.suppress(OSError),
        copied_socket(fd) as sock,
        closing(fcntl.ioctl(sock, SIOCGSKNS)) as number,
    ):
        return f"net:[{os.fstat(number).st_ino}]"
    return ""


def _of_another_network(fd: Descriptor, kind: str) -> Finding:
    """CRIU finds no state of such a socket: it fails, or takes it for one without an address."""
    about: dict[str, Any] = {"pid": fd.pid, "fd": fd.number}
    where = f"a socket ({kind}) belongs to a network namespace in which no process of the tree is"
    if kind in UNIX or kind.startswith("PACKET") or _is_tcp_in_use(fd, kind):
        failure = "socket-of-another-network"
        return stops("socket-of-another-network", where, failure=failure, **about)
    message = f"{where}: it is restored without an address, in that of the process"
    return lost("socket-of-another-network", message, cure="close it before the dump", **about)


def _is_tcp_in_use(fd: Descriptor, kind: str) -> bool:
    """Whether it is a TCP socket that listens or is connected."""
    with contextlib.suppress(OSError), copied_socket(fd) as sock:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return kind.startswith("TCP") and info[0] != CLOSE
    return False


def _netlink(fd: Descriptor) -> Findings:
    about = on(fd)
    with contextlib.suppress(OSError), copied_socket(fd) as sock:
        port = sock.getsockname()[0]
        groups = sock.getsockopt(SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 1024)
        if readable(sock.fileno()):
            message = "a netlink socket has messages that the program has not read"
            yield stops("netlink-unread", message, failure="netlink-unread", **about)
        words = -(-len(groups) // 8) * 2  # the kernel reports whole longs; CRIU drops a last 0
        if words > 2 or any(groups[4:]):
            message = "a netlink socket has multicast groups above 32"
            yield stops("netlink-groups", message, failure="netlink-groups", **about)
        elif groups and not port:
            message = "a netlink socket has multicast groups and is not bound"
            yield stops("netlink-groups", message, failure="netlink-groups", **about)


def queued(context: Context) -> int:
    """Bytes in the queues of the sockets that a dump with these options saves."""
    tables = tables_of(context)
    total = 0
    for fd, kind in sockets_of(context):
        inode = fd.stat.st_ino
        if kind in UNIX:
            table = next((t.unix for t in tables.values() if inode in t.unix), {})
            if inode in table and not table[inode].listens:
                sent = sum(other.unsent for other in table.values() if other.peer == inode)
                is_first_only = table[inode].type == socket.SOCK_DGRAM
                total += max(table[inode].unread, sent if is_first_only else 0)
        elif kind.startswith("TCP") and not context.opts.tcp_close:
            tcp = inet_socket(tables, fd, kind)
            if tcp is not None and tcp.state not in (LISTEN, CLOSE, TIME_WAIT):
                total += tcp.unsent + tcp.unread
    return total
