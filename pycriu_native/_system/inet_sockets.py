"""The internet sockets of a network namespace, from ``/proc/PID/net`` (proc_pid_net(5))."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Iterator

from .._support.frozen_dataclass import dataclass
from .._support.kernel_text import read_lines
from .._support.lazy import socket
from .._support.unpatched import sleep
from .descriptors import links_of
from .process import all_pids

ANY = ("0.0.0.0", "::")
"""The addresses of a socket that accepts on every address."""

ESTABLISHED, LISTEN = 1, 10
"""States of a TCP socket (``net/tcp_states.h`` of Linux)."""


@dataclass(frozen=True, slots=True)
class InetSocket:
    """A line of ``/proc/PID/net/tcp`` or a table like it."""

    local_words: str
    """Address and port, in hexadecimal words of this machine's byte order."""
    remote_words: str
    state: int
    unsent: int
    """Bytes that the other end has not confirmed."""
    unread: int
    """Bytes in the receive queue; of a listening socket, connections not yet accepted."""
    uid: int
    inode: int
    """0 for a connection in TIME_WAIT, which belongs to no process."""

    @property
    def local(self) -> tuple[str, int]:
        """Address and port."""
        return address_of(self.local_words)

    @property
    def remote(self) -> tuple[str, int]:
        """Address and port of the other end."""
        return address_of(self.remote_words)


def inet_sockets(pid: int | str, *tables: str) -> Iterator[InetSocket]:
    """The sockets in the tables of these names, such as ``tcp6``.

    Tables that this kernel lacks are empty. Raises ``OSError`` if the process has ended.
    """
    for table in tables:
        with contextlib.suppress(FileNotFoundError):
            for line in read_lines(f"/proc/{pid}/net/{table}")[1:]:
                _, local, remote, state, queues, _, _, uid, _, inode = line.split()[:10]
                unsent, unread = (int(size, 16) for size in queues.split(":"))
                yield InetSocket(
                    local, remote, int(state, 16), unsent, unread, int(uid), int(inode)
                )


def tcp_sockets(pid: int | str = "self") -> Iterator[InetSocket]:
    """The TCP sockets of a process's network namespace."""
    return inet_sockets(pid, "tcp", "tcp6")


def address_of(words: str) -> tuple[str, int]:
    """Address and port from the kernel's notation, ``0100007F:0016``."""
    address, _, port = words.partition(":")
    parts = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    data = b"".join(part.to_bytes(4, sys.byteorder) for part in parts)
    family = socket.AF_INET if len(data) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, data), int(port, 16)


def unmapped(host: str) -> str:
    """An address; an IPv4 address that is mapped into IPv6 in its own notation."""
    return host.removeprefix("::ffff:") if "." in host else host


def listening() -> dict[tuple[str, int], set[str]]:
    """Family (INET or INET6) and port of the listening TCP sockets here, and their addresses."""
    result: dict[tuple[str, int], set[str]] = {}
    for family, table in (("INET", "tcp"), ("INET6", "tcp6")):
        for sock in inet_sockets("self", table):
            if sock.state == LISTEN:
                host, port = sock.local
                result.setdefault((family, port), set()).add(host)
    return result


def is_ours(family: str, address: str) -> bool:
    """Whether a socket can have this address here; no port is bound."""
    kind = socket.AF_INET6 if family == "INET6" else socket.AF_INET
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def listener_on(port: int, seconds: float) -> int | None:
    """The pid of the process that listens on a TCP port in the caller's network namespace.

    The search is repeated for ``seconds``, since the process may not listen yet.
    """
    until = time.monotonic() + seconds
    while True:
        links = {
            f"socket:[{sock.inode}]"
            for sock in tcp_sockets()
            if sock.state == LISTEN and sock.local[1] == port
        }
        for pid in all_pids() if links else ():
            if any(link in links for _, link in links_of(pid)):
                return pid
        if time.monotonic() > until:
            return None
        sleep(0.005)


def abstract_names() -> frozenset[str]:
    """The names of the unix sockets here; an abstract name begins with ``@``."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without unix sockets
        rows = (line.split(None, 7) for line in read_lines("/proc/net/unix")[1:])
        return frozenset(row[7] for row in rows if len(row) == 8)
    return frozenset()
