"""The TCP connections of processes, and the end of the repair mode that a killed CRIU leaves.

CRIU reads the state of a connection in a mode in which the socket sends nothing (TCP_REPAIR). The
mode is a property of the socket and stays when CRIU is killed. It can be ended through any
descriptor of the socket, such as a copy by ``pidfd_getfd``. Ending it clears SO_REUSEADDR
(net/ipv4/tcp.c of Linux), which is therefore read before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from .._native.ffi import native
from .._support.frozen_dataclass import dataclass
from .._support.lazy import socket
from .._support.sockets import of_another
from .._support.unpatched import closing
from .descriptors import sockets_of
from .inet_sockets import tcp_sockets, unmapped

TCP_REPAIR = 19

STANDING = {1, 2, 4, 5, 6, 8, 9, 11}
"""States of a connection that has not ended: all but SYN_RECV, CLOSE, LISTEN, and TIME_WAIT, which
belongs to no process."""


@dataclass(frozen=True, slots=True)
class Ends:
    """A TCP connection: local address and port, remote address and port."""

    host: str
    port: int
    far_host: str
    far_port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port} - {self.far_host}:{self.far_port}"

    def turned(self) -> Ends:
        """The same connection, seen from the other end."""
        return Ends(self.far_host, self.far_port, self.host, self.port)


def connections_of(pids: Iterable[int]) -> dict[int, Ends]:
    """The open TCP connections of these processes, by the inode of the socket."""
    known: dict[str, dict[int, Ends]] = {}
    result: dict[int, Ends] = {}
    for pid in pids:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/net")
            if namespace not in known:
                known[namespace] = dict(_table(pid))
        except OSError:
            continue  # it has ended
        for inode in sockets_of(pid):
            if inode in known[namespace]:
                result[inode] = known[namespace][inode]
    return result


def _table(pid: int) -> Iterator[tuple[int, Ends]]:
    """The connections of a process's network namespace."""
    for sock in tcp_sockets(pid):
        if sock.state in STANDING and sock.inode:
            (host, port), (far_host, far_port) = sock.local, sock.remote
            yield sock.inode, Ends(unmapped(host), port, unmapped(far_host), far_port)


def reusing(pids: Iterable[int]) -> set[int]:
    """The inodes of those connections that have SO_REUSEADDR."""
    return {
        inode
        for inode, sock in _borrowed(pids)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    }


def end_repair(pids: Iterable[int], reuse: set[int]) -> set[int]:
    """End the repair mode of all connections; returns the inodes of those where it fails."""
    failed = set()
    for inode, sock in _borrowed(pids):
        try:
            if sock.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
                sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(inode in reuse))
        except OSError:
            failed.add(inode)
    return failed


def _borrowed(pids: Iterable[int]) -> Iterator[tuple[int, socket.socket]]:
    """Each connection once, by a copy of its descriptor that is closed before the next."""
    pids = list(pids)
    standing = connections_of(pids)
    seen: set[int] = set()
    for pid in pids:
        expected = {inode: fd for inode, fd in sockets_of(pid).items() if inode in standing}
        if not expected.keys() - seen:
            continue
        with contextlib.suppress(ProcessLookupError), closing(os.pidfd_open(pid)) as process:
            for inode, fd in expected.items():
                copy = -1 if inode in seen else native.pn_copy_descriptor(process, fd)
                if copy >= 0:
                    with closing(copy), of_another(copy) as sock:
                        if os.fstat(sock.fileno()).st_ino == inode:
                            seen.add(inode)
                            yield inode, sock
