"""The internet sockets of a network namespace, from ``/proc/PID/net`` (proc_pid_net(5))."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator

from .._support.frozen_dataclass import dataclass
from .._support.kernel_text import read_lines
from .._support.lazy import socket
from .._support.unpatched import sleep
from .descriptors import sockets_of
from .process import all_pids

ESTABLISHED, SYN_RECV, LISTEN = 1, 3, 10
"""States of a TCP socket (``net/tcp_states.h`` of Linux)."""

TICKS = 100
"""Units of a second in ``/proc`` (USER_HZ)."""

_TIME_WAIT_TIMER = "03"


@dataclass(frozen=True, slots=True)
class InetSocket:
    """A line of ``/proc/PID/net/tcp`` or a table like it."""

    local_words: str
    """Address and port, in hexadecimal words of this machine's byte order."""
    remote_words: str
    state: int
    unsent: int
    """Bytes that the other end has not acknowledged."""
    unread: int
    """Bytes in the receive queue; of a listening socket, connections not yet accepted."""
    uid: int
    inode: int
    """0 for a connection that has ended, as one in TIME_WAIT: it belongs to no process."""
    ends_in: float | None = None
    """Seconds until the kernel forgets a connection in TIME_WAIT; None for other sockets."""

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
                _, local, remote, state, queues, timer, _, uid, _, inode = line.split()[:10]
                unsent, unread = (int(size, 16) for size in queues.split(":"))
                kind, _, remaining = timer.partition(":")
                yield InetSocket(
                    local,
                    remote,
                    int(state, 16),
                    unsent,
                    unread,
                    int(uid),
                    int(inode),
                    int(remaining, 16) / TICKS if kind == _TIME_WAIT_TIMER else None,
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
    """An address; an IPv4 address that is mapped into IPv6 in the notation of IPv4."""
    return host.removeprefix("::ffff:") if "." in host else host


def owners_of(sockets: Iterable[InetSocket]) -> dict[int, tuple[int, int]]:
    """A process that has each of these sockets open, and its descriptor, by the socket's inode."""
    sought = {each.inode for each in sockets if each.inode}
    result: dict[int, tuple[int, int]] = {}
    for pid in all_pids() if sought else ():
        result |= {i: (pid, fd) for i, fd in sockets_of(pid).items() if i in sought - result.keys()}
        if len(result) == len(sought):
            break
    return result


def listener_on(port: int, seconds: float) -> int | None:
    """The pid of the process that listens on a TCP port in the caller's network namespace.

    The search is repeated for ``seconds``, since the process may not listen yet.
    """
    until = time.monotonic() + seconds
    while True:
        listening = (each for each in tcp_sockets() if each.state == LISTEN)
        owners = owners_of(each for each in listening if each.local[1] == port)
        pid = next((pid for pid, _ in owners.values()), None)
        if pid is not None or time.monotonic() > until:
            return pid
        sleep(0.005)


def abstract_names() -> frozenset[str]:
    """The names of the unix sockets here; an abstract name begins with ``@``."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without unix sockets
        rows = (line.split(None, 7) for line in read_lines("/proc/net/unix")[1:])
        return frozenset(row[7] for row in rows if len(row) == 8)
    return frozenset()
