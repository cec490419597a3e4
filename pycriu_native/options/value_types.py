"""Checks and encodes the values of options, with one class for each kind of value.

``parse`` converts a value to the form that ``CriuOpts`` stores, or raises ``ValueError`` with
what is accepted. ``wire`` returns the form for the message, ``plain`` the form for JSON and TOML.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from .. import enums
from .._support.frozen_dataclass import dataclass
from .._support.light_typing import TYPE_CHECKING, Any
from ..errors import OptionError, Problem
from .values import HasFileno, StructuredValue, WireValue, checked_text, descriptor_number

if TYPE_CHECKING:
    from enum import IntEnum


class Kind:
    """A kind of value. In the usual case it is one value, the same on the wire and in JSON."""

    def parse(self, value: Any) -> object:
        raise NotImplementedError

    def wire(self, value: Any) -> WireValue:
        return value  # type: ignore[no-any-return]

    def plain(self, value: Any) -> object:
        return value


class Flag(Kind):
    """True or false."""

    def parse(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError("True, False or None is accepted")
        return value


@dataclass(frozen=True)
class Number(Kind):
    """A whole number within bounds, both included."""

    low: int
    high: int
    step: int = 1

    def parse(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"a whole number from {self.low} to {self.high} is accepted")
        if not self.low <= value <= self.high:
            raise ValueError(f"{self.low} to {self.high} is accepted")
        if value % self.step:
            raise ValueError(f"a multiple of {self.step} is accepted")
        return int(value)


@dataclass(frozen=True)
class Mode(Kind):
    """A member of an enumeration: itself, its name in any case, or its number."""

    enumeration: str
    """The name of the class in ``modes.py``."""

    @property
    def members(self) -> type[IntEnum]:
        """The enumeration, made when it is first used."""
        return getattr(enums, self.enumeration)  # type: ignore[no-any-return]

    def parse(self, value: object) -> IntEnum:
        members = self.members
        if isinstance(value, str):
            result = members.__members__.get(value.upper().replace("-", "_"))
            if result is not None:
                return result
        elif isinstance(value, members) or type(value) is int:
            # Not any IntEnum: the number of another enumeration's member means something else.
            try:
                return members(value)
            except ValueError:
                pass
        names = ", ".join(f"{m.name.lower()} ({m.value})" for m in members)
        raise ValueError(f"one of {names} is accepted, as {self.enumeration}, name or number")

    def wire(self, value: IntEnum) -> WireValue:
        return int(value)

    def plain(self, value: IntEnum) -> object:
        return value.name.lower()


class Namespaces(Kind):
    """A mask of ``CLONE_NEW*`` flags; CRIU accepts only the network namespace."""

    NET = 0x40000000

    def parse(self, value: object) -> int:
        if isinstance(value, str) and value.lower() == "net":
            return self.NET
        if isinstance(value, int) and not isinstance(value, bool) and value in (0, self.NET):
            return value
        raise ValueError(
            f"'net', CLONE_NEWNET ({self.NET:#x}) or 0 is accepted; CRIU supports no other"
        )


@dataclass(frozen=True)
class Text(Kind):
    """A string without NUL. ``parse`` keeps undecodable bytes as surrogates."""

    what: str = "text"
    empty: bool = False

    def parse(self, value: object) -> str:
        return checked_text(value, self.what, empty=self.empty)


@dataclass(frozen=True)
class FilePath(Kind):
    """A path: str, bytes or ``os.PathLike``."""

    what: str = "a path"
    empty: bool = False

    def parse(self, value: object) -> str:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        return checked_text(value, self.what, empty=self.empty)


def path_argument(name: str, value: object) -> str:
    """The path in an argument of a function. Raises ``OptionError`` that names it."""
    try:
        return FilePath().parse(value)
    except (TypeError, ValueError) as error:
        raise OptionError([Problem(name, value, str(error))]) from None


class FileDescriptor(Kind):
    """A descriptor: its number, or an object that owns it."""

    def parse(self, value: object) -> object:
        descriptor_number(value)
        return value

    def wire(self, value: object) -> WireValue:
        return descriptor_number(value)

    plain = wire


class Directory(Kind):
    """A directory: a path, a descriptor's number, or an object that owns one.

    A path is not sent: the call opens it and sends the descriptor.
    """

    def parse(self, value: object) -> object:
        if isinstance(value, os.PathLike | str | bytes):
            return FilePath("a directory's path").parse(value)
        try:
            descriptor_number(value)
        except ValueError:
            raise ValueError(
                "a path, a descriptor's number or an object with fileno() is accepted"
            ) from None
        return value

    def wire(self, value: object) -> WireValue:
        return descriptor_number(value)

    def plain(self, value: object) -> object:
        return value if isinstance(value, str) else descriptor_number(value)


@dataclass(frozen=True)
class ListOf(Kind):
    """A list of one kind, stored as a tuple; a single value is accepted as a list of one.

    ``inner`` names the message field that wraps each item on the wire, where one does.
    """

    item: Kind
    inner: str = ""

    def parse(self, value: object) -> tuple[object, ...]:
        if isinstance(
            value, str | bytes | os.PathLike | HasFileno | int | Mapping | StructuredValue
        ):
            value = (value,)
        elif not isinstance(value, Iterable):
            raise ValueError("a list is accepted")
        parsed = []
        for index, item in enumerate(value):
            try:
                parsed.append(self.item.parse(item))
            except ValueError as problem:
                raise ValueError(f"item {index} ({item!r}): {problem}") from None
        return tuple(parsed)

    def wire(self, value: tuple[Any, ...]) -> WireValue:
        items = [self.item.wire(item) for item in value]
        return [{self.inner: item} for item in items] if self.inner else items

    def plain(self, value: tuple[Any, ...]) -> object:
        return [self.item.plain(item) for item in value]


@dataclass(frozen=True)
class Argument(FilePath):
    """One argument of a command line; it may be empty."""

    what: str = "a word of a command"
    empty: bool = True


@dataclass(frozen=True)
class Command(ListOf):
    """A command and its arguments.

    libcriu's setter takes all at once, as a count and an array of strings.
    """

    item: Kind = Argument()

    def parse(self, value: object) -> tuple[object, ...]:
        if isinstance(value, str | bytes):
            raise ValueError("a list of words is accepted, not one string")
        words = super().parse(value)
        if not words or not words[0]:
            raise ValueError("a list that starts with a program is accepted")
        return words


@dataclass(frozen=True)
class Item(Kind):
    """A structured value: one of the classes of ``values.py``."""

    cls: type[StructuredValue]

    def parse(self, value: object) -> StructuredValue:
        return self.cls.parse(value)

    def wire(self, value: StructuredValue) -> WireValue:
        return value.wire()

    def plain(self, value: StructuredValue) -> object:
        return {
            k: FileDescriptor().plain(v) if isinstance(v, HasFileno) else v
            for k, v in value.to_plain().items()
        }
