"""The structured values of options, checked and normalized.

Each class here is one message of CRIU's wire format. ``parse`` accepts the forms of callers;
``wire`` gives the message's fields by their names in ``rpc.proto``; ``SETTER`` has those that
libcriu's setter takes, in its order, and the attribute of each.
"""

from __future__ import annotations

import os
from abc import ABC
from collections.abc import Mapping, Sequence

from .._support.frozen_dataclass import dataclass, field
from .._support.light_typing import TYPE_CHECKING, ClassVar, Protocol, Self, cast

WireValue = bool | int | str | dict[str, "WireValue"] | list["WireValue"]
"""The value of a message field, as it is written and read."""


if TYPE_CHECKING:
    from typing import runtime_checkable

    @runtime_checkable
    class HasFileno(Protocol):
        """An open file, socket, or anything else that owns a descriptor."""

        def fileno(self) -> int: ...
else:

    class HasFileno(ABC):  # noqa: B024
        """An open file, socket, or anything else that owns a descriptor."""

        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            return hasattr(other, "fileno")


Descriptor = int | HasFileno
"""A descriptor: its number, or an object that owns it (and must stay open during the call)."""


def descriptor_number(value: object) -> int:
    """The number of a descriptor; ``ValueError`` for other values."""
    if not isinstance(value, int) and isinstance(value, HasFileno):
        value = value.fileno()
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a descriptor's number or an object with fileno() is accepted")
    if not 0 <= value < 2**31:
        raise ValueError("a descriptor's number, 0 or more, is accepted")
    return value


def is_text(value: object) -> bool:
    """Whether a value is a str, bytes or a path, without NUL characters, that can be encoded."""
    try:
        return b"\0" not in os.fsencode(cast("str", value))
    except (TypeError, UnicodeEncodeError):  # a lone surrogate
        return False


def checked_text(value: object, what: str = "text", *, empty: bool = False) -> str:
    """A string without NUL, as C needs it, and not empty unless that is allowed."""
    if isinstance(value, bytes):
        value = os.fsdecode(value)
    if not isinstance(value, str):
        raise ValueError(f"{what} is accepted, as str or bytes")
    if "\0" in value:
        raise ValueError(f"{what} without a NUL character is accepted")
    if not value and not empty:
        raise ValueError(f"{what} that is not empty is accepted")
    if not is_text(value):
        raise ValueError(f"{what} that can be encoded is accepted (no lone surrogates)")
    return value


class StructuredValue:
    """The base of the value classes: parses sequences, mappings and text."""

    __slots__ = ()
    SETTER: ClassVar[dict[str, str]]
    FORMS: ClassVar[str]
    SEPARATOR: ClassVar = ":"
    """What is between the two fields in text, unless a class has another form."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """This value from an instance, a mapping, a sequence in field order, or text."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str | bytes):
            return cls._from_text(os.fsdecode(value))
        try:
            if isinstance(value, Mapping):
                return cls(**value)
            if isinstance(value, Sequence):
                return cls(*value)
        except TypeError:
            pass
        raise ValueError(cls.FORMS + " is accepted")

    @classmethod
    def _from_text(cls, text: str) -> Self:
        return cls(*list(_split(text, cls.SEPARATOR, cls.FORMS)))

    def wire(self) -> dict[str, WireValue]:
        """The fields that are set, by their names in ``rpc.proto``."""
        values = {name: getattr(self, attribute) for name, attribute in self.SETTER.items()}
        return {name: value for name, value in values.items() if value is not None}

    def text(self) -> str:
        """This value as text that ``parse`` accepts; ``ValueError`` if text cannot express it."""
        text = self._to_text()
        try:
            same = self._from_text(text).wire() == self.wire()
        except ValueError:
            same = False
        if not same:
            raise ValueError(f"as text it would mean something else: {text!r}")
        return text

    def _to_text(self) -> str:
        return self.SEPARATOR.join(getattr(self, each) for each in self.SETTER.values())

    def to_plain(self) -> dict[str, object]:
        """The fields that are set, as a mapping that ``parse`` accepts."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _keep_text(item: StructuredValue, field: str, what: str, *, empty: bool = False) -> None:
    """Check one field of a new item, and convert bytes and paths to text."""
    value = getattr(item, field)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    object.__setattr__(item, field, checked_text(value, what, empty=empty))


def _split(text: str, separator: str, forms: str) -> tuple[str, str]:
    remaining, result, right = text.partition(separator)
    if not result:
        raise ValueError(forms + " is accepted")
    return remaining, right


@dataclass(frozen=True, slots=True)
class VethPair(StructuredValue):
    """A veth pair of a container with its own network namespace (runc's ``VethPairName``).

    CRIU now recommends the equivalent ``external=["veth[eth0]:veth0"]``.
    """

    inside: str
    """The interface's name in the container."""
    outside: str
    """The name of its peer on the host; ``name@bridge`` also adds it to a bridge."""

    SETTER: ClassVar = {"if_in": "inside", "if_out": "outside"}
    FORMS: ClassVar = "VethPair, (inside, outside) or 'inside=outside'"
    SEPARATOR: ClassVar = "="

    def __post_init__(self) -> None:
        _keep_text(self, "inside", "an interface's name")
        _keep_text(self, "outside", "an interface's name")


@dataclass(frozen=True, slots=True)
class PageServer(StructuredValue):
    """The page server that receives the memory pages (runc's ``CriuPageServerInfo``)."""

    address: str | None = None
    """Address or host name of the page server."""
    port: int | None = None
    """Its TCP port, 1 to 65535. (CRIU reads it as a signed 16-bit number and converts it back.)"""
    fd: int | None = None
    """A connected socket to a page server instead of address and port; CRIU inherits it."""
    clear_text: bool | None = field(default=None, compare=False)
    """Permit other addresses than loopback without ``tls``: other users of the network, and users
    with access to the server's port, can then read and change the memory. It is not sent to
    CRIU, is ignored when values are compared, and is not in forms for CRIU or runc."""

    SETTER: ClassVar = {"address": "address", "port": "port"}
    FORMS: ClassVar = "PageServer, (address, port), 'host:port' or '[ipv6]:port'"

    def __post_init__(self) -> None:
        if self.address is None and self.port is None and self.fd is None:
            raise ValueError(self.FORMS + " is accepted")
        if self.address is not None:
            _keep_text(self, "address", "an address")
            if self.address[0] in "[]":
                raise ValueError("an address without brackets is accepted")
        if self.port is not None and (
            isinstance(self.port, bool)
            or not isinstance(self.port, int)
            or not 0 <= self.port <= 65535
        ):
            raise ValueError("a port from 0 to 65535 is accepted")
        if self.fd is not None:
            object.__setattr__(self, "fd", descriptor_number(self.fd))
        if self.clear_text is not None and not isinstance(self.clear_text, bool):
            raise ValueError("True, False or None is accepted as clear_text")

    @classmethod
    def _from_text(cls, text: str) -> Self:
        address, result, port = text.rpartition(":")
        bracketed = address.startswith("[") and address.endswith("]")
        is_number = port.isascii() and port.isdigit() and len(port) <= 5
        if not result or not is_number or (":" in address) != bracketed:
            raise ValueError(cls.FORMS + " is accepted")
        return cls(address[1:-1] if bracketed else address, int(port))

    def _to_text(self) -> str:
        address = self.address or ""
        return f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"

    def wire(self) -> dict[str, WireValue]:
        return super().wire() | ({} if self.fd is None else {"fd": self.fd})


@dataclass(frozen=True, slots=True)
class ExtMount(StructuredValue):
    """An external mount; CRIU now recommends ``external=["mnt[key]:value"]``."""

    key: str
    """On dump the mount point in the container, on restore the key of the dump."""
    value: str
    """On dump a key of the caller's choice, on restore the path on the host."""

    SETTER: ClassVar = {"key": "key", "val": "value"}
    FORMS: ClassVar = "ExtMount, (key, value) or 'key:value'"

    def __post_init__(self) -> None:
        _keep_text(self, "key", "a key")
        _keep_text(self, "value", "a value")


@dataclass(frozen=True, slots=True)
class CgroupRoot(StructuredValue):
    """The parent cgroup of a restored tree of cgroups (``--cgroup-root``)."""

    path: str
    """The parent cgroup."""
    controller: str | None = None
    """For this controller only, as /proc/PID/cgroup names it (empty: cgroup v2); None: for all."""

    SETTER: ClassVar = {"ctrl": "controller", "path": "path"}
    FORMS: ClassVar = "CgroupRoot, (path,), (path, controller) or 'controller:/path' or '/path'"

    def __post_init__(self) -> None:
        _keep_text(self, "path", "a path")
        if self.controller is not None:
            _keep_text(self, "controller", "a controller's name", empty=True)

    @classmethod
    def _from_text(cls, text: str) -> Self:
        controller, result, path = text.partition(":")
        return cls(path, controller) if result else cls(text)

    def _to_text(self) -> str:
        return self.path if self.controller is None else f"{self.controller}:{self.path}"


@dataclass(frozen=True, slots=True)
class JoinNamespace(StructuredValue):
    """An existing namespace that the restored tree joins instead of a new one."""

    kind: str
    """``net``, ``ipc``, ``uts``, ``mnt``, ``user`` or ``time``."""
    file: str
    """Its file, such as ``/run/netns/blue``, or the pid of a process in it."""
    extra: str | None = None
    """For ``user``: the uid and gid to set there, as ``UID,GID``."""

    SETTER: ClassVar = {"ns": "kind", "ns_file": "file", "extra_opt": "extra"}
    FORMS: ClassVar = "JoinNamespace, (kind, file), (kind, file, extra) or 'kind:file[,extra]'"

    def __post_init__(self) -> None:
        _keep_text(self, "kind", "a kind of namespace")
        _keep_text(self, "file", "a namespace's file")
        if self.extra is not None:
            _keep_text(self, "extra", "an extra option")

    @classmethod
    def _from_text(cls, text: str) -> Self:
        kind, rest = _split(text, ":", cls.FORMS)
        file, result, extra = rest.partition(",")
        return cls(kind, file, extra if result else None)

    def _to_text(self) -> str:
        extra = "" if self.extra is None else "," + self.extra
        return f"{self.kind}:{self.file}{extra}"


@dataclass(frozen=True, slots=True)
class InheritFd(StructuredValue):
    """A descriptor of the caller that replaces one in the images (``--inherit-fd``)."""

    fd: Descriptor
    """The descriptor: its number, or an object that owns it. CRIU gets a copy."""
    key: str
    """The replaced file: ``pipe:[inode]``, ``socket:[inode]``, ``tty[rdev:dev]``, a path
    without its leading slash, or the key of an external resource."""

    SETTER: ClassVar = {"fd": "fd", "key": "key"}
    FORMS: ClassVar = "InheritFd, (fd, key) or 'fd[number]:key'"

    def __post_init__(self) -> None:
        descriptor_number(self.fd)
        _keep_text(self, "key", "a key")

    @classmethod
    def _from_text(cls, text: str) -> Self:
        number, key = _split(text.removeprefix("fd["), "]:", cls.FORMS)
        if not text.startswith("fd[") or not (number.isascii() and number.isdigit()):
            raise ValueError(cls.FORMS + " is accepted")
        return cls(int(number), key)

    def _to_text(self) -> str:
        return f"fd[{descriptor_number(self.fd)}]:{self.key}"

    def wire(self) -> dict[str, WireValue]:
        return super().wire() | {"fd": descriptor_number(self.fd)}
