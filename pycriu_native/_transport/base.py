"""The ways to reach a CRIU that is not a worker of our own.

What a call needs of any of them is ``Via``; :class:`~pycriu_native.Worker` is the default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from .._support.frozen_dataclass import dataclass
from .._support.lazy import socket
from .._support.light_typing import ClassVar, Protocol
from ..errors import CriuError, PermissionDeniedError, Problem, ProgramNotFoundError
from ..options.values import Descriptor, descriptor_number
from .connection import Connection, widen
from .spawn import DEFAULT_SPAWN_OPTIONS, SpawnOptions

DEFAULT_SERVICE = "/run/criu_service.socket"
"""Where ``criu service`` listens unless told otherwise (libcriu's ``cr-service-const.h``)."""


class Via(Protocol):
    """A way to reach CRIU."""

    ours: ClassVar[bool]
    """Whether the process is ours, so that descriptors can be handed to it as it starts."""

    @property
    def allow_untrusted(self) -> bool:
        """Whether to use what other users of this machine could change: see :class:`Worker`."""

    def identity(self) -> tuple[object, ...] | None:
        """Which CRIU this is; None: it cannot be asked ahead of the request."""

    def name(self) -> str:
        """What to call it in messages."""

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """What it cannot do: ``inherits`` descriptors of ours, ``sibling`` for a restored child."""

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """An open line to it."""


@dataclass(frozen=True, slots=True)
class Service:
    """A running ``criu service``, reached by its socket.

    It must see our descriptors under ``/proc`` and so share our pid namespace. It is no child
    of ours, so it cannot inherit descriptors (``inherit_fds``, ``PageServer(fd=...)``) nor
    restore into our children. Whoever can reach a service that runs as root can become root:
    a worker of our own is the safe default.
    """

    path: str | os.PathLike[str] = DEFAULT_SERVICE
    """Its socket."""
    allow_untrusted: bool = False
    """Use a service of another user than root and the caller, and directories that others could
    change or swap, or that are symbolic links. Default: refuse them."""
    ours: ClassVar[bool] = False

    def identity(self) -> tuple[object, ...] | None:
        """Which service this is: its socket as it is now."""
        try:
            result = os.stat(self.path)
        except OSError as error:
            raise ProgramNotFoundError(
                f"no criu service listens on {os.fspath(self.path)!r}: {error.strerror}; start one "
                "with criu service, or leave via out for a worker of your own"
            ) from None
        return os.fspath(self.path), result.st_dev, result.st_ino, result.st_mtime_ns

    def name(self) -> str:
        """What to call it in messages."""
        return f"the criu service at {os.fspath(self.path)}"

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """Descriptors cannot be inherited, nor can a child of ours be made."""
        if inherits:
            yield Problem("via", self, "a service cannot inherit descriptors; use a Worker")
        if sibling:
            yield Problem("via", self, "a service cannot restore a child of ours; use a Worker")

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """Connect to it. ``ProgramNotFoundError`` where nobody listens, ``PermissionDeniedError``
        where it is neither root's nor the caller's.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        widen(sock)
        try:
            sock.connect(os.fspath(self.path))
        except OSError as error:
            sock.close()
            raise ProgramNotFoundError(
                f"no criu service answers on {os.fspath(self.path)!r}: {error.strerror}"
            ) from None
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        owner = int.from_bytes(credentials[4:8], sys.byteorder)  # behind the pid
        if owner not in (0, os.geteuid()) and not self.allow_untrusted:
            sock.close()
            raise PermissionDeniedError(
                f"{self.name()} was started by user {owner}, who would be told what we save and "
                "could answer as they like; Service(path, allow_untrusted=True) takes it as it is"
            )
        return Connection(sock, program=self.name())


@dataclass(frozen=True, slots=True)
class Socket:
    """A connected socket to a CRIU that the caller has started (``criu swrk``), borrowed.

    CRIU serves one request on it. The caller's descriptor stays open and is the caller's to
    close. What that CRIU can do is not asked ahead; descriptors for ``inherit_fds`` are numbers
    in that process; it must see our descriptors under the pid that made the socket.
    """

    fd: Descriptor
    """The socket: its number, or the object that owns it."""
    allow_untrusted: bool = False
    """As with a :class:`Service`, but for whose it is: the caller knows whom it has connected."""
    ours: ClassVar[bool] = False

    def identity(self) -> tuple[object, ...] | None:
        """Unknown: a question would be the one request that it serves."""
        return None

    def name(self) -> str:
        """What to call it in messages."""
        return f"the CRIU on descriptor {descriptor_number(self.fd)}"

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """Nothing: its starter knows what it was given."""
        return iter(())

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """A duplicate of it."""
        try:
            sock = socket.socket(fileno=os.dup(descriptor_number(self.fd)))
        except OSError as error:
            raise CriuError(f"{self.name()} is no socket: {error.strerror}") from None
        sock.setblocking(True)
        widen(sock)
        return Connection(sock, program=self.name())
