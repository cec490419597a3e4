"""The TCP connections of processes, and the repair mode in which a killed CRIU leaves them.

CRIU reads a connection's state in a mode in which the socket neither sends nor answers
(TCP_REPAIR). The mode is the socket's, so it outlives CRIU; but any descriptor of the socket can
end it, and ``pidfd_getfd`` gets us one. Ending it clears SO_REUSEADDR (net/ipv4/tcp.c of Linux),
which is why that is looked up before.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator

from .._native.ffi import native
from .._recovery.network_lock import Ends
from .._support.lazy import socket

TCP_REPAIR = 19

STANDING = {"01", "02", "04", "05", "06", "08", "09", "0B"}
"""States of a connection that is not over, as /proc/net/tcp prints them: all but TIME_WAIT,
which no process has any more, SYN_RECV, CLOSE and LISTEN."""

_SOCKET = re.compile(r"socket:\[(\d+)\]")


def connections_of(pids: Iterable[int]) -> dict[int, Ends]:
    """The TCP connections that these processes have open, each by its socket's inode."""
    known: dict[str, dict[int, Ends]] = {}
    result: dict[int, Ends] = {}
    for pid in pids:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/net")
            if namespace not in known:
                known[namespace] = dict(_table(pid))
        except OSError:
            continue  # it has ended
        for inode in _sockets_of(pid):
            if inode in known[namespace]:
                result[inode] = known[namespace][inode]
    return result


def _sockets_of(pid: int) -> dict[int, int]:
    """A descriptor of each socket that a process has open, by inode."""
    result: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                match = _SOCKET.fullmatch(os.readlink(f"/proc/{pid}/fd/{fd}"))
                if match:
                    result[int(match[1])] = int(fd)
    return result


def _table(pid: int) -> Iterator[tuple[int, Ends]]:
    """The connections of a process's network namespace."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/net/{name}") as file:
            for line in file.readlines()[1:]:
                _, here, there, state, *_, inode = line.split()[:10]
                if state in STANDING and inode != "0":
                    yield int(inode), Ends(*_end(here), *_end(there))


def _end(text: str) -> tuple[str, int]:
    """Address and port, from the kernel's words in hexadecimals; a mapped address as version 4."""
    address, _, port = text.partition(":")
    # Words of 32 bits, each printed as a number of this machine's byte order.
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    data = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    if len(data) == 16 and data.startswith(bytes(10) + b"\xff\xff"):
        data = data[12:]
    family = socket.AF_INET if len(data) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, data), int(port, 16)


# ---- repair mode ----


def reusing(pids: Iterable[int]) -> set[int]:
    """The inodes of those connections that have SO_REUSEADDR."""
    return {
        inode
        for inode, sock in _borrowed(pids)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    }


def end_repair(pids: Iterable[int], reuse: set[int]) -> set[int]:
    """Have all connections go on that were left in repair mode; the inodes of those that cannot."""
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
    """Each connection, once, over a descriptor of our own that lives until the next."""
    pids = list(pids)
    standing = connections_of(pids)
    seen: set[int] = set()
    for pid in pids:
        expected = {inode: fd for inode, fd in _sockets_of(pid).items() if inode in standing}
        if not expected.keys() - seen:
            continue
        with contextlib.suppress(ProcessLookupError), _pidfd(pid) as process:
            for inode, fd in expected.items():
                copy = -1 if inode in seen else native.pn_fd_of(process, fd)
                if copy >= 0:
                    with socket.socket(fileno=copy) as sock:
                        if os.fstat(copy).st_ino == inode:
                            seen.add(inode)
                            yield inode, sock


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)
