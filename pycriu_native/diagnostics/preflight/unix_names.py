"""Names of unix sockets: CRIU binds the restored socket to the name that bind(2) was given.

The file can have got another name since. ``criu/sk-unix.c``: ``unix_resolve_name``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

from ..._support.unpatched import closing
from ..._system.descriptors import where
from ..._system.process_snapshot import Descriptor
from .context import Context, Findings, lost, stops
from .open_sockets import UNIX, copied_socket, sockets_of

SIOCUNIXFILE = 0x89E0
"""``linux/un.h``: a descriptor of the file that a socket is bound to."""
DELETED = " (deleted)"


def look(context: Context) -> Findings:
    """Findings on unix sockets whose file name differs from the name that they were bound to."""
    for fd, kind in sockets_of(context):
        if kind in UNIX:
            with contextlib.suppress(OSError), copied_socket(fd) as sock:
                yield from _name(fd, sock)


def _name(fd: Descriptor, sock: socket.socket) -> Findings:
    name = sock.getsockname()
    if not name or isinstance(name, bytes):
        return  # it has no name, or an abstract one
    with closing(fcntl.ioctl(sock.fileno(), SIOCUNIXFILE)) as file:
        link, of_file = where(file), os.fstat(file)
    path = link.removesuffix(DELETED)  # the last one if the file has none
    is_deleted = link != path
    is_found = False
    with contextlib.suppress(OSError):
        is_found = os.path.samestat(os.stat(f"/proc/{fd.pid}/root/{name}"), of_file)
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    is_datagram = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM
    is_relative = not name.startswith("/")
    about = {"pid": fd.pid, "fd": fd.number, "path": name}
    if is_relative and not path.endswith("/" + name.removeprefix("./")):
        message = f"a unix socket is bound to a relative name, and its file is {path}"
        yield stops("unix-relative", message, failure="unix-relative", **about)
    elif is_relative or is_found or not (listens or is_datagram):
        return  # the name leads to the file, or others do not use it
    elif is_deleted and of_file.st_nlink:
        yield lost(
            "unix-renamed",
            "its file has lost this name and has another, which leads nowhere after a restore",
            cure="make the program bind the name that its clients use",
            **about,
        )
    elif not is_deleted:
        yield lost(
            "unix-renamed",
            f"its file was renamed to {path}, which leads nowhere after a restore",
            cure="rename the file again after the restore, as the program did, or have the "
            "program bind the name that its clients use",
            **about,
        )
