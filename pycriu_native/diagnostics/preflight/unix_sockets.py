"""Unix sockets: connections out of the tree, and messages that CRIU loses (``criu/sk-unix.c``)."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from ..._system.descriptors import link
from ..._system.process_snapshot import Descriptor
from ..._system.sock_diag import UnixSocket
from .context import Context, Findings, lost, no_restore, note, stops
from .open_sockets import Tables, copied_socket

SO_PASSPIDFD = 76
TIMESTAMPS = (29, 35, 63, 64)
"""SO_TIMESTAMP and SO_TIMESTAMPNS, each in two forms (``asm-generic/socket.h``)."""
ESTABLISHED = 1


def look_at(
    context: Context, fd: Descriptor, tables: dict[str, Tables], ours: set[int]
) -> Findings:
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
        yield from _listener(sock, ours, about)
    elif sock.peer:
        if sock.peer not in ours:
            yield from _outside(context, sock, table.unix.get(sock.peer), about)
    elif sock.type != socket.SOCK_DGRAM and sock.state == ESTABLISHED and sock.shut_down != 3:
        yield from _in_flight(sock, table, ours, about)


def _adds_to_messages(fd: Descriptor, type: int) -> bool:
    """Whether the kernel adds control messages to what the socket receives."""
    with contextlib.suppress(OSError), copied_socket(fd) as sock:
        options = [socket.SO_PASSCRED, SO_PASSPIDFD]
        if type != socket.SOCK_STREAM:
            options += TIMESTAMPS
        for option in options:
            with contextlib.suppress(OSError):  # an older kernel
                if sock.getsockopt(socket.SOL_SOCKET, option):
                    return True
    return False


def _listener(sock: UnixSocket, ours: set[int], about: dict[str, Any]) -> Findings:
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


def _in_flight(sock: UnixSocket, table: Tables, ours: set[int], about: dict[str, Any]) -> Findings:
    """A client that is not accepted yet: its other end does not exist."""
    listener = next((s for s in table.unix.values() if sock.inode in s.waiting), None)
    if listener is None:
        message = "a unix socket waits to be accepted in another network namespace"
        yield stops("unix-dangling", message, failure="unix-dangling", **about)
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


def _outside(
    context: Context, sock: UnixSocket, peer: UnixSocket | None, about: dict[str, Any]
) -> Findings:
    """A socket whose other end is not in the tree."""
    key = f"unix[{sock.inode}]"
    name = _shown(peer.name) if peer is not None else ""
    if context.external(key):
        yield note("unix-external", "a unix socket is given from outside on restore", **about)
    elif peer is not None and sock.type == socket.SOCK_DGRAM and peer.name:
        yield context.needs(
            "unix-outside",
            f"a unix socket sends to {name} outside of the tree",
            cure="external_unix_connections=True on dump and restore",
            sets={"external_unix_connections": True},
            failure="unix-ext",
            **about,
        )
    elif sock.type == socket.SOCK_DGRAM:
        message = "a unix datagram socket is connected to one outside that has no name"
        yield stops("unix-nameless", message, failure="unix-nameless", **about)
    else:
        at = f" at {name}" if name else ""
        yield context.needs(
            "unix-half",
            f"a unix socket is connected to a process outside of the tree{at}",
            cure=f'external=["{key}"] on dump and inherit_fds=[(fd, "socket:[{sock.inode}]")] on '
            "restore, with a new connection; or close it before the dump",
            sets={"external": (key,)},
            failure="unix-half",
            **about,
        )


def _shown(name: bytes) -> str:
    return ("@" + os.fsdecode(name[1:])) if name[:1] == b"\0" else os.fsdecode(name)
