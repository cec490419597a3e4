"""Sockets: kinds that CRIU cannot save, connections, and unix sockets that leave the tree.

``criu/sockets.c``, ``sk-inet.c``, ``sk-unix.c``, ``sk-netlink.c``. The protocol of
another process's socket is an attribute of its file (``system.sockprotoname``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from typing import Any

from ..._failures.log_excerpt import known
from ..._support.sockets import of_another
from ..._support.unpatched import close, readable
from ..._system.descriptors import copied
from ..._system.inet_sockets import InetSocket, inet_sockets
from ..._system.port_conflicts import ANY
from ..._system.process_snapshot import Descriptor, Process, link
from ..._system.sock_diag import UnixSocket, links, unix_sockets
from ..._transport.helper_programs import HelperPrograms
from ...findings import Finding
from .context import Context, lost, needs, needs_programs, no_restore, note, stops

INTERNET = {
    "TCP": "tcp",
    "TCPv6": "tcp6",
    "UDP": "udp",
    "UDPv6": "udp6",
    "UDP-Lite": "udplite",
    "UDPLITEv6": "udplite6",
    "RAW": "raw",
    "RAWv6": "raw6",
    "PING": "icmp",
    "PINGv6": "icmp6",
}
"""Internet protocols that CRIU saves, and their table in /proc/PID/net."""
UNIX = ("UNIX", "UNIX-STREAM")
OTHERS = ("NETLINK", "PACKET")
NO_PROTOCOL = ("MPTCP", "MPTCPv6", "SCTP", "SCTPv6", "SMC", "SMC6", "DCCP", "DCCPv6")
"""Internet protocols that CRIU refuses by name; it refuses all others as a family."""

DATAGRAMS = ("UDP", "UDPv6", "UDP-Lite", "UDPLITEv6")
UDP_CORK = 1
"""``linux/udp.h``."""
SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS = 270, 9
"""``linux/netlink.h``."""
SIOCGSKNS = 0x894C
"""``linux/sockios.h``: a descriptor of the network namespace of a socket."""
SO_PEERNAME, SO_TIMESTAMP, SO_PASSPIDFD = 28, 29, 76
"""``asm-generic/socket.h``."""
V4_MAPPED = bytes(10) + b"\xff\xff"
ESTABLISHED, TIME_WAIT, CLOSE, LISTEN = 1, 6, 7, 10
KNOWN_LINKS = frozenset(("veth", "tun", "bridge", "macvlan", "venet"))
LOOPBACK = 772
FALLBACK_LINKS = frozenset(("gre0", "gretap0", "sit0"))
"""Devices that the kernel makes in each namespace: not checked."""


def look(context: Context) -> Iterator[Finding]:
    """Findings on the sockets of the tree."""
    result = list(sockets_of(context))
    tables = _tables(context)
    ours = {fd.stat.st_ino for fd, _ in result}
    networks = context.tree.in_namespaces("net")
    for fd, kind in result:
        about = {"pid": fd.pid, "fd": fd.number}
        if kind in NO_PROTOCOL:
            yield stops(
                "protocol",
                f"a socket's protocol is {kind}, which CRIU cannot save",
                failure="mptcp",
                **about,
            )
        elif kind not in (*UNIX, *INTERNET, *OTHERS):
            yield stops(
                "socket-family",
                f"a socket is of a family that CRIU cannot save ({kind})",
                failure="socket-family",
                **about,
            )
        elif (network := _network_of(fd)) and network not in networks:
            yield _of_another_network(fd, kind)
        elif kind in UNIX:
            yield from _unix(context, fd, tables, ours)
        elif kind in INTERNET:
            yield from _internet(context, fd, kind, tables)
        elif kind == "NETLINK":
            yield from _netlink(fd)
    yield from _programs(context)
    yield from _links(context)


def _tables(context: Context) -> dict[str, Tables]:
    """The sockets of each network namespace of the tree, and of the caller's."""
    result = {
        which: Tables(process) for which, process in context.tree.in_namespaces("net").items()
    }
    result.setdefault(context.tree.ours.namespaces["net"], Tables(context.tree.ours))
    return result


def sockets_of(context: Context) -> Iterator[tuple[Descriptor, str]]:
    """Each socket of the tree once, and the kernel's name of its protocol."""
    seen = set()
    for fd in context.tree.descriptors():
        if fd.is_socket and not fd.flags & os.O_PATH and fd.stat.st_ino not in seen:
            seen.add(fd.stat.st_ino)
            yield fd, kind_of(fd)


def kind_of(fd: Descriptor) -> str:
    """The kernel's name of the protocol; empty if the descriptor is closed."""
    with contextlib.suppress(OSError):
        return os.getxattr(fd.path, "system.sockprotoname").rstrip(b"\0").decode()
    return "UNIX"  # closed meanwhile: no finding


def kinds(context: Context) -> set[str]:
    """The kinds of all sockets in the tree."""
    return {kind for _, kind in sockets_of(context)}


def families_to_lock(context: Context) -> set[str]:
    """The programs of iptables for the TCP connections of the tree.

    CRIU locks each socket with another end, also one that is closed and in no table. IPv4 addresses
    of IPv6 sockets are locked as IPv4.
    """
    result: set[str] = set()
    for fd, kind in sockets_of(context):
        if end := _other_end(fd, kind):
            is_4 = kind == "TCP" or end[8:20] == V4_MAPPED
            result.add("iptables" if is_4 else "ip6tables")
    return result


def _other_end(fd: Descriptor, kind: str) -> bytes:
    """The address of the other end of a TCP socket, also of a closed one; empty if it has none."""
    if kind.startswith("TCP"):
        with contextlib.suppress(OSError), copied_socket(fd) as sock:
            size = 16 if kind == "TCP" else 28  # struct sockaddr_in, sockaddr_in6
            end = sock.getsockopt(socket.SOL_SOCKET, SO_PEERNAME, size)
            return end if any(end[2:4]) else b""  # its port
    return b""


class Tables:
    """The sockets of a network namespace. Each table is read at first use."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._read: dict[str, dict[int, InetSocket]] = {}
        self._unix: dict[int, UnixSocket] | None = None

    @property
    def unix(self) -> dict[int, UnixSocket]:
        """Unix sockets by inode."""
        if self._unix is None:
            self._unix = unix_sockets(self.process)
        return self._unix

    def inet(self, table: str, inode: int) -> InetSocket | None:
        """An internet socket, by the name of its table in /proc/PID/net."""
        if table not in self._read:
            self._read[table] = {}
            with contextlib.suppress(OSError):
                found = inet_sockets(self.process.pid, table)
                self._read[table] = {sock.inode: sock for sock in found}
        return self._read[table].get(inode)


def _internet(
    context: Context, fd: Descriptor, kind: str, tables: dict[str, Tables]
) -> Iterator[Finding]:
    if kind in DATAGRAMS and _is_corked(fd):
        yield stops(
            "udp-cork",
            "a UDP socket holds back what the program sends (UDP_CORK)",
            pid=fd.pid,
            fd=fd.number,
            failure="udp-cork",
        )
    for table in tables.values():
        sock = table.inet(INTERNET[kind], fd.stat.st_ino)
        if sock is not None:
            break
    else:
        if _other_end(fd, kind) and not context.opts.tcp_close:
            yield needs(
                context,
                "tcp-closed-by-both",
                "a TCP connection that has ended is in the images, for which the restore needs an "
                "option",
                known("tcp-restore").cure,
                sets={"tcp_established": True},
                failure="tcp-restore",
                pid=fd.pid,
                fd=fd.number,
            )
        return  # neither bound nor connected
    state, unread = sock.state, sock.unread
    about = {"pid": fd.pid, "fd": fd.number}
    if not kind.startswith("TCP"):
        if unread:
            yield lost(
                "unread",
                f"{unread} bytes of datagrams that it has not read are dropped",
                **about,
            )
        yield from _unbound_after_a_restore(kind, sock, about)
        return
    if state == LISTEN:
        if unread:
            yield needs(
                context,
                "not-accepted",
                "a listening socket has connections that the program has not yet accepted",
                known("tcp-in-flight").cure,
                sets={"tcp_skip_in_flight": True},
                failure="tcp-in-flight",
                path=_shown_address(sock.local),
                **about,
            )
    elif state not in (CLOSE, TIME_WAIT):
        to = f"{_shown_address(sock.local)} to {_shown_address(sock.remote)}"
        if context.opts.tcp_close:
            yield lost(
                "tcp-closed", f"the TCP connection from {to} is dropped (tcp_close)", **about
            )
            return
        yield needs(
            context,
            "tcp-connection",
            "a TCP connection is open",
            known("tcp-established").cure,
            sets={"tcp_established": True},
            failure="tcp-established",
            path=to,
            **about,
        )


def _unbound_after_a_restore(
    kind: str, sock: InetSocket, about: dict[str, Any]
) -> Iterator[Finding]:
    """What CRIU does not restore of raw and ping sockets (``open_inet_sk`` of ``sk-inet.c``)."""
    if not kind.startswith(("RAW", "PING")):
        return
    # CRIU connects a socket only if the port of the other end is not 0.
    filters = set() if sock.remote[1] else {sock.local[0], sock.remote[0]} - set(ANY)
    identifier = kind.startswith("PING") and sock.local[1]
    if filters or identifier:
        what = [f"the identifier {identifier}"] if identifier else []
        what += [f"the address {address}" for address in sorted(filters)]
        yield lost(
            "raw-address",
            f"a {kind} socket is bound to or connected with {' and '.join(what)}",
            cure="make the program open it again after the restore",
            **about,
        )


def _network_of(fd: Descriptor) -> str:
    """The network namespace of a socket, as its link in /proc; empty if it is not known."""
    with contextlib.suppress(OSError), copied_socket(fd) as sock:
        number = fcntl.ioctl(sock, SIOCGSKNS)
        try:
            return f"net:[{os.fstat(number).st_ino}]"
        finally:
            close(number)
    return ""


def _of_another_network(fd: Descriptor, kind: str) -> Finding:
    """CRIU finds no state of such a socket: it fails, or takes it for one without an address."""
    about: dict[str, Any] = {"pid": fd.pid, "fd": fd.number}
    where = f"a socket ({kind}) belongs to a network namespace in which no process of the tree is"
    if kind in UNIX or kind.startswith("PACKET") or _is_tcp_in_use(fd, kind):
        failure = "socket-of-another-network"
        return stops("socket-of-another-network", where, failure=failure, **about)
    return lost(
        "socket-of-another-network",
        f"{where}: it is restored without an address, in that of the process",
        cure="close it before the dump",
        **about,
    )


def _is_tcp_in_use(fd: Descriptor, kind: str) -> bool:
    """Whether it is a TCP socket that listens or is connected."""
    with contextlib.suppress(OSError), copied_socket(fd) as sock:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return kind.startswith("TCP") and info[0] != CLOSE
    return False


@contextlib.contextmanager
def copied_socket(fd: Descriptor) -> Iterator[socket.socket]:
    """A copy of another process's socket. Raises ``OSError``."""
    with copied(fd.pid, fd.number) as number, of_another(number) as sock:
        yield sock


def _is_corked(fd: Descriptor) -> bool:
    with contextlib.suppress(OSError), copied_socket(fd) as sock:
        return bool(sock.getsockopt(socket.IPPROTO_UDP, UDP_CORK))
    return False


def queued(context: Context) -> int:
    """Bytes in the queues of the sockets that a dump with these options saves."""
    tables = _tables(context)
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
            found = (table.inet(INTERNET[kind], inode) for table in tables.values())
            tcp = next(filter(None, found), None)
            if tcp is not None and tcp.state not in (LISTEN, CLOSE, TIME_WAIT):
                total += tcp.unsent + tcp.unread
    return total


def _shown_address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _netlink(fd: Descriptor) -> Iterator[Finding]:
    about = {"pid": fd.pid, "fd": fd.number, "path": fd.link}
    with contextlib.suppress(OSError), copied_socket(fd) as sock:
        port = sock.getsockname()[0]
        groups = sock.getsockopt(SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 1024)
        is_readable = readable(sock.fileno())
        if is_readable:
            yield stops(
                "netlink-unread",
                "a netlink socket has messages that the program has not read",
                failure="netlink-unread",
                **about,
            )
        words = -(-len(groups) // 8) * 2  # the kernel reports whole longs; CRIU drops a last 0
        if words > 2 or any(groups[4:]):
            yield stops(
                "netlink-groups",
                "a netlink socket has multicast groups above 32",
                failure="netlink-groups",
                **about,
            )
        elif groups and not port:
            yield stops(
                "netlink-groups",
                "a netlink socket has multicast groups and is not bound",
                failure="netlink-groups",
                **about,
            )


# ---- unix sockets ----


def _unix(
    context: Context, fd: Descriptor, tables: dict[str, Tables], ours: set[int]
) -> Iterator[Finding]:
    inode = fd.stat.st_ino
    about: dict[str, Any] = {"pid": fd.pid, "fd": fd.number, "path": f"socket:[{inode}]"}
    table = next((table for table in tables.values() if inode in table.unix), None)
    if table is None:
        if any(table.unix for table in tables.values()) and link(fd.path) == fd.link:
            yield stops(
                "socket-of-another-network",
                "a unix socket belongs to a network namespace in which no process of the tree is",
                failure="socket-of-another-network",
                **about,
            )
        return
    sock = table.unix[inode]
    if sock.unread and not sock.listens and _adds_to_messages(fd, sock.type):
        yield stops(
            "unread-credentials",
            "a unix socket that receives credentials or times has messages that it has not read",
            failure="unread-credentials",
            **about,
        )
    if sock.listens:
        yield from _unix_listener(sock, ours, about)
    elif sock.peer:
        if sock.peer not in ours:
            yield from _unix_outside(context, sock, table.unix.get(sock.peer), about)
    elif sock.type != socket.SOCK_DGRAM and sock.state == ESTABLISHED and sock.shut_down != 3:
        yield from _unix_in_flight(sock, table, ours, about)


def _adds_to_messages(fd: Descriptor, type: int) -> bool:
    """Whether the kernel adds control messages to what the socket receives."""
    with contextlib.suppress(OSError), copied_socket(fd) as sock:
        options = [socket.SO_PASSCRED, SO_PASSPIDFD]
        if type == socket.SOCK_DGRAM:
            options.append(SO_TIMESTAMP)
        for option in options:
            with contextlib.suppress(OSError):  # an older kernel
                if sock.getsockopt(socket.SOL_SOCKET, option):
                    return True
    return False


def _unix_listener(sock: UnixSocket, ours: set[int], about: dict[str, Any]) -> Iterator[Finding]:
    if 0 in sock.waiting:
        yield stops(
            "unix-closed-before-accepted",
            "a connection to its unix socket was closed before it was accepted",
            cure="make the program accept it",
            failure="unix-in-flight",
            **about,
        )
    elif any(inode not in ours for inode in sock.waiting):
        yield lost(
            "unix-not-accepted", "connections from outside that wait at its unix socket", **about
        )


def _unix_in_flight(
    sock: UnixSocket, table: Tables, ours: set[int], about: dict[str, Any]
) -> Iterator[Finding]:
    """A client that is not accepted yet: its other end does not exist."""
    listener = next((s for s in table.unix.values() if sock.inode in s.waiting), None)
    if listener is None:
        yield stops(
            "unix-dangling",
            "a unix socket waits to be accepted in another network namespace",
            failure="unix-dangling",
            **about,
        )
    elif sock.unsent:
        yield stops(
            "unix-in-flight-data",
            f"{sock.unsent} bytes were sent over a unix socket that is not yet accepted",
            cure="have the other side accept it",
            failure="unix-in-flight",
            **about,
        )
    elif listener.inode not in ours:
        yield no_restore(
            "unix-in-flight",
            "it waits to be accepted at a unix socket outside of the tree",
            failure="unix-not-accepted",
            cure="make the other side accept the connection, or close it before the dump",
            **about,
        )


def _unix_outside(
    context: Context, sock: UnixSocket, peer: UnixSocket | None, about: dict[str, Any]
) -> Iterator[Finding]:
    """A socket whose other end is not in the tree."""
    key = f"unix[{sock.inode}]"
    name = _shown(peer.name) if peer is not None else ""
    if context.external(key):
        yield note("unix-external", "a unix socket is given from outside on restore", **about)
    elif peer is not None and sock.type == socket.SOCK_DGRAM and peer.name:
        yield needs(
            context,
            "unix-outside",
            f"a unix socket sends to {name} outside of the tree",
            "external_unix_connections=True on dump and restore",
            sets={"external_unix_connections": True},
            failure="unix-ext",
            **about,
        )
    elif sock.type == socket.SOCK_DGRAM:
        yield stops(
            "unix-nameless",
            "a unix datagram socket is connected to one outside that has no name",
            failure="unix-nameless",
            **about,
        )
    else:
        at = f" at {name}" if name else ""
        yield needs(
            context,
            "unix-half",
            f"a unix socket is connected to a process outside of the tree{at}",
            f'external=["{key}"] on dump and inherit_fds=[(fd, "socket:[{sock.inode}]")] on '
            "restore, with a new connection; or close it before the dump",
            sets={"external": (key,)},
            failure="unix-half",
            **about,
        )


def _shown(name: bytes) -> str:
    return ("@" + os.fsdecode(name[1:])) if name[:1] == b"\0" else os.fsdecode(name)


# ---- devices of the network ----


def _saved_namespaces(context: Context) -> list[Process]:
    """A process of each network namespace that CRIU saves."""
    if context.in_force("empty_ns"):
        return []
    return [
        process
        for which, process in context.tree.in_namespaces("net").items()
        if which != context.tree.ours.namespaces["net"]
        and not context.external(f"net[{which.partition('[')[2].rstrip(']')}]")
    ]


def _programs(context: Context) -> Iterator[Finding]:
    """The programs with which CRIU saves them."""
    if _saved_namespaces(context):
        helpers = HelperPrograms(context.via)
        programs = [helpers.ip, *(["sh"] if helpers.saves_rules() else [])]
        yield from needs_programs(context, "a network namespace", *programs)


def _links(context: Context) -> Iterator[Finding]:
    """Devices of these namespaces that CRIU cannot restore."""
    for process in _saved_namespaces(context):
        for device in links(process):
            if (
                device.type == LOOPBACK
                or device.kind in KNOWN_LINKS
                or device.name in FALLBACK_LINKS
                or context.external(f"macvlan[{device.name}]")
            ):
                continue
            yield needs(
                context,
                "network-device",
                f"its network namespace has a device of a kind that CRIU cannot rebuild "
                f"({device.kind or 'hardware'})",
                known("link-type").cure,
                sets={"empty_ns": 0x40000000},
                failure="link-type",
                pid=process.pid,
                path=device.name,
            )
