"""Ways to reach a CRIU process that this library does not start.

``Via`` is the interface of all ways; :class:`~pycriu_native.Worker` is the default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from .._native.ffi import ffi
from .._support.frozen_dataclass import dataclass
from .._support.lazy import socket
from .._support.light_typing import ClassVar, Protocol
from .._support.sockets import blocking
from .._support.unpatched import close
from ..errors import CriuError, PermissionDeniedError, Problem, ProgramNotFoundError
from ..options.values import Descriptor, descriptor_number
from .connection import Connection, widen
from .program import on_disk
from .spawn import DEFAULT_SPAWN_OPTIONS, SpawnOptions

DEFAULT_SERVICE = "/run/criu_service.socket"
"""Default socket path of ``criu service`` (libcriu's ``cr-service-const.h``)."""

UNTIL_ACCEPTED = 10
"""Seconds to wait while the queue of connections to a service is full: it hangs or is stopped, and
a call that waits to connect cannot be interrupted."""


def _timeval(seconds: int) -> bytes:
    return bytes(ffi.buffer(ffi.new("long[2]", [seconds, 0])))


class Via(Protocol):
    """A way to reach CRIU."""

    ours: ClassVar[bool]
    """Whether this library starts the process, so that it can inherit descriptors."""

    @property
    def allow_untrusted(self) -> bool:
        """Whether to use what other users of this machine could change: see :class:`Worker`."""

    def identity(self) -> tuple[object, ...] | None:
        """Identifies the CRIU; None: its release and features cannot be requested before the
        call.
        """

    def name(self) -> str:
        """The name in messages."""

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """Problems of a request: ``inherits`` descriptors, ``sibling`` for a restored child."""

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """Open a connection to it."""


@dataclass(frozen=True, slots=True)
class Service:
    """A running ``criu service``, reached by its socket.

    It opens the caller's descriptors under ``/proc`` and so must share its pid namespace. It is not
    a child of the caller, so it cannot inherit descriptors (``inherit_fds``,
    ``PageServer(fd=...)``) or restore a child of the caller. A user with access to a service that
    runs as root can become root; a :class:`Worker` is the safe default.
    """

    path: str | os.PathLike[str] = DEFAULT_SERVICE
    """Its socket."""
    allow_untrusted: bool = False
    """Use a service of another user than root and the caller, and directories that others could
    change or swap, or that are symbolic links. Default: refuse them."""
    ours: ClassVar[bool] = False

    def identity(self) -> tuple[object, ...] | None:
        """Path, device, inode and modification time of its socket."""
        try:
            return on_disk(os.fspath(self.path))
        except OSError as error:
            raise ProgramNotFoundError(
                f"no criu service listens on {os.fspath(self.path)!r}: {error.strerror}; start one "
                "with criu service, or leave via out for a worker of your own"
            ) from None

    def name(self) -> str:
        """The name in messages."""
        return f"the criu service at {os.fspath(self.path)}"

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """It inherits no descriptors, and cannot restore a child of the caller."""
        if inherits:
            yield Problem("via", self, "a service cannot inherit descriptors; use a Worker")
        if sibling:
            yield Problem("via", self, "a service cannot restore the caller's child; use a Worker")

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """Connect to it. ``ProgramNotFoundError`` if no process listens, ``PermissionDeniedError``
        if it belongs neither to root nor to the caller.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            widen(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(UNTIL_ACCEPTED))
            try:
                sock.connect(os.fspath(self.path))
            except OSError as error:
                raise ProgramNotFoundError(
                    f"no criu service answers on {os.fspath(self.path)!r}: "
                    f"{error.strerror or error}"  # a path that is too long has no errno
                ) from None
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(0))
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            owner = int.from_bytes(credentials[4:8], sys.byteorder)  # behind the pid
            if owner not in (0, os.geteuid()) and not self.allow_untrusted:
                raise PermissionDeniedError(
                    f"{self.name()} was started by user {owner}, who could read all images and "
                    "change them; Service(path, allow_untrusted=True) accepts it"
                )
            return Connection(blocking(sock).detach(), program=self.name())


@dataclass(frozen=True, slots=True)
class Socket:
    """A connected socket to a CRIU that the caller has started (``criu swrk``), borrowed.

    CRIU serves one request on it. The caller closes its descriptor. The release and features of
    that CRIU are not requested; descriptors for ``inherit_fds`` are numbers in that process. It
    must see the caller's descriptors under the pid that created the socket.
    """

    fd: Descriptor
    """The socket: its number, or the object that owns it."""
    allow_untrusted: bool = False
    """As for a :class:`Service`, except for its owner, which the caller has chosen."""
    ours: ClassVar[bool] = False

    def identity(self) -> tuple[object, ...] | None:
        """None: it serves one request only, and a request for its release would be that one."""
        return None

    def name(self) -> str:
        """The name in messages."""
        return f"the CRIU on descriptor {descriptor_number(self.fd)}"

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """A descriptor that is not open; the caller that started it determines what it inherits."""
        try:
            os.fstat(descriptor_number(self.fd))
        except (OSError, ValueError):
            yield Problem("via", self, "the descriptor of a socket is accepted, and it is not open")

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """A duplicate of it."""
        try:
            fd = os.dup(descriptor_number(self.fd))
            try:
                sock = socket.socket(fileno=fd)
            except OSError:
                close(fd)
                raise
        except OSError as error:
            raise CriuError(f"{self.name()} is no socket: {error.strerror}") from None
        widen(sock)
        return Connection(blocking(sock).detach(), program=self.name())
