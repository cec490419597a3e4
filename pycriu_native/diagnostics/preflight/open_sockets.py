"""The open sockets of a tree: their kinds, their states and copies of them.

The protocol of another process's socket is an attribute of its file (``system.sockprotoname``).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from ..._support.cached_property import cached_property
from ..._support.sockets import of_another
from ..._system.descriptors import copied
from ..._system.inet_sockets import InetSocket, inet_sockets
from ..._system.process_snapshot import Descriptor, Process
from ..._system.sock_diag import UnixSocket, unix_sockets
from .context import Context

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


def sockets_of(context: Context) -> Iterator[tuple[Descriptor, str]]:
    """Each socket of the tree once, and the kernel's name of its protocol."""
    seen = set()
    for fd in context.tree.descriptors():
        if fd.is_socket and not fd.flags & os.O_PATH and fd.stat.st_ino not in seen:
            seen.add(fd.stat.st_ino)
            yield fd, kind_of(fd)


def kind_of(fd: Descriptor) -> str:
    """The kernel's name of the protocol."""
    with contextlib.suppress(OSError):
        return os.getxattr(fd.path, "system.sockprotoname").rstrip(b"\0").decode()
    return "UNIX"  # closed meanwhile: no finding


@contextlib.contextmanager
def copied_socket(fd: Descriptor) -> Iterator[socket.socket]:
    """A copy of another process's socket. Raises ``OSError``."""
    with copied(fd.pid, fd.number) as number, of_another(number) as sock:
        yield sock


class Tables:
    """The sockets of a network namespace. Each table is read at first use."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._read: dict[str, dict[int, InetSocket]] = {}

    @cached_property
    def unix(self) -> dict[int, UnixSocket]:
        """Unix sockets by inode."""
        return unix_sockets(self.process)

    def inet(self, table: str, inode: int) -> InetSocket | None:
        """An internet socket, by the name of its table in /proc/PID/net."""
        if table not in self._read:
            self._read[table] = {}
            with contextlib.suppress(OSError):
                found = inet_sockets(self.process.pid, table)
                self._read[table] = {sock.inode: sock for sock in found}
        return self._read[table].get(inode)


def tables_of(context: Context) -> dict[str, Tables]:
    """The sockets of each network namespace of the tree, and of the caller's."""
    result = {
        which: Tables(process) for which, process in context.tree.in_namespaces("net").items()
    }
    result.setdefault(context.tree.ours.namespaces["net"], Tables(context.tree.ours))
    return result


def inet_socket(tables: dict[str, Tables], fd: Descriptor, kind: str) -> InetSocket | None:
    """The state of an internet socket; None if it is neither bound nor connected."""
    found = (table.inet(INTERNET[kind], fd.stat.st_ino) for table in tables.values())
    return next(filter(None, found), None)
