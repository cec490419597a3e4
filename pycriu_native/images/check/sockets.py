"""Sockets (``criu/sk-inet.c``, ``criu/sk-unix.c``)."""

from __future__ import annotations

import os
import socket

from ..._system.inet_sockets import abstract_names
from ..._system.port_conflicts import Binding, Conflict, conflict_of, cure_of_ended
from ..._system.process import name_of
from ...findings import Finding
from ..kernel_names import PROTOCOLS
from ..model import InetSocket, UnixSocket
from .context import Context, Findings, predicted, stops, warning


def inet_sockets(context: Context) -> Findings:
    sockets = context.files(InetSocket)
    connected = [
        each for each in sockets if each.connected and not _inherited_socket(context, each)
    ]
    if context.images.tcp_close and not context.opts.tcp_close:
        yield stops("TCP", "the dump was made with tcp_close", "tcp_close=True", "tcp_close")
    elif connected and not (context.opts.tcp_established or context.opts.tcp_close):
        yield stops(
            connected[0].label,
            "a connection is in the images"
            + (f", and {len(connected) - 1} more" if len(connected) > 1 else ""),
            "tcp_established=True, or tcp_close=True to drop it",
            "tcp_established",
            "tcp_close",
        )
    if "net" not in context.host or context.joins("net"):
        return
    for each in sockets:
        binding = _binding(each)
        if each.remote and not each.connected and not _inherited_socket(context, each):
            address, _, port = each.remote.rpartition(":")
            if not binding.reaches(address.strip("[]"), _port_in_criu(port)):
                yield predicted(each.label, "udp-connect")
        if not binding.port:
            continue
        dropped = each.connected and bool(context.opts.tcp_close)
        # CRIU binds these even if the address is not configured (``inet_bind``).
        dropped |= each.family == "INET6" and each.kind != "RAW" and not each.connected
        if not dropped and not binding.is_here():
            yield stops(
                each.label,
                f"no network device here has the address {binding.address}",
                f"ip address add {binding.address} dev DEVICE",
            )
        elif not each.connected and (conflict := conflict_of(binding)):
            yield _port(context, each, binding.port, conflict)


def _inherited_socket(context: Context, sock: InetSocket) -> bool:
    return context.is_inherited(f"socket:[{sock.inode}]")


def _port(context: Context, sock: InetSocket, port: int, conflict: Conflict) -> Finding:
    if conflict.seconds is not None:
        return stops(
            sock.label,
            f"connections that have ended hold the port (TIME_WAIT), for {conflict.seconds} s",
            cure_of_ended(conflict.seconds, port),
        )
    pid = conflict.pid
    what = "another process" if pid is None else f"pid {pid}, {name_of(pid)},"
    if not conflict.certain:
        message = f"{what} has the port: the restore fails unless it shares it (SO_REUSEADDR)"
        return warning(sock.label, message, "end that process")
    does = "listens there" if sock.state == "LISTEN" else "has the port"
    return stops(sock.label, f"{what} {does}", "end that process")


def unix_sockets(context: Context) -> Findings:
    sockets = context.files(UnixSocket)
    outside = {each.inode: each for each in sockets if each.external}
    saved = {each.inode for each in sockets}
    for sock in sockets:
        if sock.peer and sock.peer not in saved:
            yield predicted(sock.label, "unix-not-accepted")
        key = f"socket:[{sock.inode}]"
        peer = outside.get(sock.peer)
        if peer is None or context.is_inherited(key):
            continue
        if not peer.name:
            yield stops(
                sock.label,
                "it is connected to a socket of another process",
                f"inherit_fds=[(fd, {key!r})]",
                "inherit_fds",
            )
        elif not context.opts.external_unix_connections:
            yield stops(
                sock.label,
                f"it is connected to {peer.name}, a socket of another process",
                "external_unix_connections=True",
                "external_unix_connections",
            )
    if "mnt" not in context.host:
        return
    taken = abstract_names() if "net" in context.host else frozenset()
    for each in sockets:
        if not each.name:
            continue
        above = os.path.dirname(each.name)
        if each.external and each.name.startswith("/") and not os.path.exists(each.name):
            yield stops(each.label, f"{each.name} does not exist", "start the process that has it")
        elif not each.external and each.name in taken:
            yield stops(each.label, "another process has this name", "end that process")
        elif above.startswith("/") and not each.deleted and not os.path.isdir(above):
            yield stops(each.label, f"{above} does not exist", "make that directory")


def _binding(sock: InetSocket) -> Binding:
    address, _, port = sock.local.rpartition(":")
    family = socket.AF_INET6 if sock.family == "INET6" else socket.AF_INET
    numbers = {name: number for number, name in PROTOCOLS.items()}
    protocol = numbers.get(sock.protocol, 0)
    return Binding(family, protocol, address.strip("[]"), _port_in_criu(port), sock.only_ipv6)


def _port_in_criu(text: str) -> int:
    """A port of the images, of which CRIU uses 16 bits."""
    return int(text) & 0xFFFF
