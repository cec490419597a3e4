"""Sockets of IPv4 and IPv6: connections, and states that CRIU does not save (``sk-inet.c``)."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from ..._system.inet_sockets import InetSocket
from ..._system.port_conflicts import ANY
from ..._system.process_snapshot import Descriptor
from .context import Context, Findings, lost, stops
from .open_sockets import Tables, copied_socket, inet_socket, sockets_of

DATAGRAMS = ("UDP", "UDPv6", "UDP-Lite", "UDPLITEv6")
UDP_CORK = 1
"""``linux/udp.h``."""
SO_PEERNAME = 28
"""``asm-generic/socket.h``."""
V4_MAPPED = bytes(10) + b"\xff\xff"
TIME_WAIT, CLOSE, LISTEN = 6, 7, 10


def look_at(context: Context, fd: Descriptor, kind: str, tables: dict[str, Tables]) -> Findings:
    about = {"pid": fd.pid, "fd": fd.number}
    if kind in DATAGRAMS and _is_corked(fd):
        message = "a UDP socket holds back what the program sends (UDP_CORK)"
        yield stops("udp-cork", message, failure="udp-cork", **about)
    sock = inet_socket(tables, fd, kind)
    if sock is None:
        if _other_end(fd, kind) and not context.opts.tcp_close:
            yield context.needs(
                "tcp-closed-by-both",
                "a TCP connection that has ended is in the images, for which the restore needs an "
                "option",
                sets={"tcp_established": True},
                failure="tcp-restore",
                **about,
            )
    elif not kind.startswith("TCP"):
        if sock.unread:
            message = f"{sock.unread} bytes of datagrams that it has not read are dropped"
            yield lost("unread", message, **about)
        yield from _unbound_after_a_restore(kind, sock, about)
    elif sock.state == LISTEN:
        if sock.unread:
            yield context.needs(
                "not-accepted",
                "a listening socket has connections that the program has not yet accepted",
                sets={"tcp_skip_in_flight": True},
                failure="tcp-in-flight",
                path=_shown_address(sock.local),
                **about,
            )
    elif sock.state not in (CLOSE, TIME_WAIT):
        to = f"{_shown_address(sock.local)} to {_shown_address(sock.remote)}"
        if context.opts.tcp_close:
            message = f"the TCP connection from {to} is dropped (tcp_close)"
            yield lost("tcp-closed", message, **about)
        else:
            yield context.needs(
                "tcp-connection",
                "a TCP connection is open",
                sets={"tcp_established": True},
                failure="tcp-established",
                path=to,
                **about,
            )


def _unbound_after_a_restore(kind: str, sock: InetSocket, about: dict[str, Any]) -> Findings:
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


def _shown_address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_corked(fd: Descriptor) -> bool:
    with contextlib.suppress(OSError), copied_socket(fd) as sock:
        return bool(sock.getsockopt(socket.IPPROTO_UDP, UDP_CORK))
    return False


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
