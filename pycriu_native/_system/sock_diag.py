"""The unix sockets and network devices of a network namespace, by netlink (sock_diag(7)).

``/proc/PID/net/unix`` does not contain the peer of a socket. CRIU uses the same interface
(``criu/sockets.c``: ``collect_sockets``). For another namespace, the request is sent by a thread
that enters it.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .._support.lazy import socket
from .._support.unpatched import Thread
from .network_namespace import in_network_of
from .process_snapshot import Process

NETLINK_ROUTE, NETLINK_SOCK_DIAG = 0, 4
SOCK_DIAG_BY_FAMILY, RTM_GETLINK = 20, 18
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
ALL_STATES = 0xFFFFFFFF
SHOW = 0x01 | 0x02 | 0x04 | 0x08 | 0x10
"""Name, inode, peer, connections not yet accepted, queues."""
NAME, _, PEER, ICONS, QUEUES, _, SHUTDOWN = range(7)
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 18, 1


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A unix socket."""

    inode: int
    type: int
    state: int
    name: bytes
    """Empty for a socket that is not bound."""
    peer: int
    """The inode of the other end; 0 for none."""
    waiting: tuple[int, ...]
    """The other ends of connections that are not accepted yet; 0 for a closed one."""
    unread: int
    """Bytes that its owner has not read; of a datagram socket those of the first datagram."""
    unsent: int
    """Bytes in the queue to the other end."""
    shut_down: int
    """1 no more reads, 2 no more writes, 3 neither."""

    @property
    def listens(self) -> bool:
        return self.state == 10


@dataclass(frozen=True, slots=True)
class Link:
    """A device of a network namespace."""

    number: int
    type: int
    """ARPHRD_..."""
    name: str
    kind: str
    """Empty for hardware and loopback."""


def unix_sockets(process: Process) -> dict[int, UnixSocket]:
    """The unix sockets of a process's network namespace by inode; none without permission."""
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, ALL_STATES, 0, SHOW, 0, 0)
    responses = _request(process, NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, request)
    return {result.inode: result for result in map(_unix_socket, responses)}


def links(process: Process) -> list[Link]:
    """The devices of a process's network namespace; none without permission."""
    responses = _request(process, NETLINK_ROUTE, RTM_GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0))
    return [_link(response) for response in responses]


def _unix_socket(data: bytes) -> UnixSocket:
    _, kind, state, _, inode = struct.unpack_from("=BBBBI", data)
    parts = dict(_attributes(data[16:]))
    icons = parts.get(ICONS, b"")
    queues = parts.get(QUEUES, bytes(8))
    return UnixSocket(
        inode=inode,
        type=kind,
        state=state,
        name=parts.get(NAME, b""),
        peer=int.from_bytes(parts.get(PEER, b""), "little"),
        waiting=struct.unpack(f"={len(icons) // 4}I", icons),
        unread=struct.unpack("=II", queues)[0],
        unsent=struct.unpack("=II", queues)[1],
        shut_down=parts.get(SHUTDOWN, b"\0")[0],
    )


def _link(data: bytes) -> Link:
    _, kind, number = struct.unpack_from("=BxHi", data)
    parts = dict(_attributes(data[16:]))
    info = dict(_attributes(parts.get(IFLA_LINKINFO, b"")))
    return Link(number, kind, _text(parts.get(IFLA_IFNAME)), _text(info.get(IFLA_INFO_KIND)))


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + size]
        at += (size + 3) & ~3


def _request(process: Process, family: int, kind: int, request: bytes) -> list[bytes]:
    """All responses in a process's network namespace; none if it cannot be entered."""
    responses: list[bytes] = []

    def there() -> None:
        with contextlib.suppress(OSError), in_network_of(process.pid):
            responses.extend(_dump(family, kind, request))

    thread = Thread(there, "sock_diag")
    thread.start()
    thread.join()
    return responses


def _dump(family: int, kind: int, request: bytes) -> list[bytes]:
    """All responses to a dump request."""
    result: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family) as sock:
        head = struct.pack("=IHHII", 16 + len(request), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        sock.send(head + request)
        while True:
            data = sock.recv(1 << 18)
            at = 0
            while at + 16 <= len(data):
                size, response = struct.unpack_from("=IH", data, at)
                if response in (NLMSG_DONE, NLMSG_ERROR):
                    return result
                result.append(data[at + 16 : at + size])
                at += (size + 3) & ~3
