"""Explains why CRIU cannot bind an IPv4 or IPv6 socket, from the sockets of this host."""

from __future__ import annotations

import errno
import os
import socket

from .._integrity.image_files import BoundSocket, DamagedError, ImageFiles
from .._support.frozen_dataclass import replace
from .._support.unpatched import close
from .._system.inet_sockets import (
    cure_of_ended,
    is_ours,
    is_taken,
    owner_of,
    port_users,
    seconds_until_forgotten,
)
from .._system.process import name_of
from ..errors import Diagnosis

_PROTOCOLS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}


def look_closer(diagnosis: Diagnosis, images: str, number: int, why: str) -> Diagnosis:
    """A diagnosis of "Can't bind inet socket", with the port or the address.

    ``number`` is the socket's id in the images, and ``why`` the system's message.
    """
    bound = _bound(images, number)
    if bound is None:
        return diagnosis
    address = socket.inet_ntop(bound.family, bound.address)
    family = "INET6" if bound.family == socket.AF_INET6 else "INET"
    if why == os.strerror(errno.EADDRNOTAVAIL) and not is_ours(family, address):
        return replace(
            diagnosis,
            cause=f"no network device here has the address {address} of a socket in the images",
            cure=f"ip address add {address} dev DEVICE",
        )
    protocol = _PROTOCOLS.get(bound.protocol)
    if why != os.strerror(errno.EADDRINUSE) or protocol is None:
        return diagnosis
    users = port_users(protocol, address, bound.port)
    what = f"{protocol.upper()} port {bound.port} of a socket in the images"
    seconds = seconds_until_forgotten(users)
    if seconds is not None:
        return replace(
            diagnosis,
            cause=f"connections that have ended hold {what} (TIME_WAIT), for {seconds} s",
            cure=cure_of_ended(seconds, bound.port),
            options=(),
        )
    pid = owner_of(users)
    if pid is not None:
        cure = f"end pid {pid}, or restore in another network namespace"
        return replace(diagnosis, cause=f"pid {pid} ({name_of(pid)}) has {what}", cure=cure)
    if protocol == "tcp" and not is_taken(family, address, bound.port):
        return replace(diagnosis, cause=f"{what} was taken", cure="it is free by now: try again")
    return diagnosis


def _bound(images: str, number: int) -> BoundSocket | None:
    try:
        directory = os.open(images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return ImageFiles(directory).inet_socket(number)
    except DamagedError:
        return None
    finally:
        close(directory)
