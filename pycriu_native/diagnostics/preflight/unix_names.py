"""Names of unix sockets: CRIU binds the restored socket to the name that bind(2) was given.

The file can have got another name since. ``criu/sk-unix.c``: ``unix_resolve_name``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from dataclasses import dataclass

from ..._support.unpatched import closing
from ..._system.descriptors import where
from ..._system.process_snapshot import Descriptor
from .context import Context, Findings, lost, stops
from .open_sockets import UNIX, copied_socket, sockets_of

SIOCUNIXFILE = 0x89E0
"""``linux/un.h``: a descriptor of the file that a socket is bound to."""
DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Bound:
    """A socket that is bound to a file."""

    name: str
    """As given to bind(2)."""
    path: str
    """The path of the file now; the last one if it has none."""
    is_deleted: bool
    links: int
    """Number of names of the file."""
    is_found: bool
    """Whether the name leads to the file."""
    accepts: bool
    """Whether others connect or send to that name."""

    @property
    def is_relative(self) -> bool:
        return not self.name.startswith("/")


def look(context: Context) -> Findings:
    """Findings on unix sockets whose file name differs from the name that they were bound to."""
    for fd, kind in sockets_of(context):
        if kind not in UNIX:
            continue
        bound = _bound(fd)
        if bound is None:
            continue
        about = {"pid": fd.pid, "fd": fd.number, "path": bound.name}
        if bound.is_relative and not bound.path.endswith("/" + bound.name.removeprefix("./")):
            message = f"a unix socket is bound to a relative name, and its file is {bound.path}"
            yield stops("unix-relative", message, failure="unix-relative", **about)
        elif not bound.accepts or bound.is_relative or bound.is_found:
            continue
        elif bound.is_deleted and bound.links:
            yield lost(
                "unix-renamed",
                "its file has lost this name and has another, which leads nowhere after a restore",
                cure="make the program bind the name that its clients use",
                **about,
            )
        elif not bound.is_deleted:
            yield lost(
                "unix-renamed",
                f"its file was renamed to {bound.path}, which leads nowhere after a restore",
                cure="rename the file again after the restore, as the program did, or have the "
                "program bind the name that its clients use",
                **about,
            )


def _bound(fd: Descriptor) -> Bound | None:
    """The file to which a socket is bound; None without a name, or for an abstract one."""
    with contextlib.suppress(OSError), copied_socket(fd) as sock:
        name = sock.getsockname()
        if not name or isinstance(name, bytes):
            return None
        with closing(fcntl.ioctl(sock.fileno(), SIOCUNIXFILE)) as file:
            path, of_file = where(file), os.fstat(file)
        is_found = False
        with contextlib.suppress(OSError):
            is_found = os.path.samestat(os.stat(f"/proc/{fd.pid}/root/{name}"), of_file)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        is_datagram = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM
        return Bound(
            name=name,
            path=path.removesuffix(DELETED),
            is_deleted=path.endswith(DELETED),
            links=of_file.st_nlink,
            is_found=is_found,
            accepts=bool(listens) or is_datagram,
        )
    return None
