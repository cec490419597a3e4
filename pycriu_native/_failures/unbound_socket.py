"""Explains why CRIU cannot bind an IPv4 or IPv6 socket, from the sockets of this host."""

from __future__ import annotations

import contextlib
import errno
import os

from .._integrity.image_files import DamagedError, ImageFiles
from .._support.frozen_dataclass import replace
from .._system.descriptors import opened_directory
from .._system.port_conflicts import conflict_of, cure_of_ended
from .._system.process import name_of
from ..errors import Diagnosis

_PROTOCOLS = {6: "TCP", 17: "UDP", 136: "UDP-Lite"}


def look_closer(diagnosis: Diagnosis, images: str, number: int, why: str) -> Diagnosis:
    """A diagnosis of "Can't bind inet socket", with the port or the address.

    ``number`` is the socket's id in the images, and ``why`` the system's message.
    """
    bound = None
    with contextlib.suppress(OSError, DamagedError), opened_directory(images) as directory:
        bound = ImageFiles(directory).bindings().get(number)
    if bound is None:
        return diagnosis
    if why == os.strerror(errno.EADDRNOTAVAIL) and not bound.is_here():
        return replace(
            diagnosis,
            cause=f"no network device here has the address {bound.address} of a socket in the "
            "images",
            cure=f"ip address add {bound.address} dev DEVICE",
        )
    if why != os.strerror(errno.EADDRINUSE) or bound.protocol not in _PROTOCOLS:
        return diagnosis
    what = f"{_PROTOCOLS[bound.protocol]} port {bound.port} of a socket in the images"
    conflict = conflict_of(bound)
    if conflict is None:
        return replace(diagnosis, cause=f"{what} was taken", cure="it is free by now: try again")
    if conflict.seconds is not None:
        return replace(
            diagnosis,
            cause=f"connections that have ended hold {what} (TIME_WAIT), for {conflict.seconds} s",
            cure=cure_of_ended(conflict.seconds, bound.port),
            options=(),
        )
    if conflict.pid is None:
        return diagnosis
    return replace(
        diagnosis,
        cause=f"pid {conflict.pid} ({name_of(conflict.pid)}) has {what}",
        cure=f"end pid {conflict.pid}, or restore in another network namespace",
    )
