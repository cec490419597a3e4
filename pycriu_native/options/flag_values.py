"""Converts the value of an option to and from the text behind its flag.

One class for each kind of value, as in ``value_types.py``; :data:`SPECIAL` has the options whose
text differs from that of their kind. Facts: CRIU's ``criu/config.c``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum, IntEnum, auto

from .._support.frozen_dataclass import dataclass
from .._support.light_typing import Any
from ..enums import CgroupMode, CompressMode, NetworkLock
from . import value_types as kinds
from .table import Row
from .values import descriptor_number

DEFAULT_LOG_LEVEL = 2
HIGHEST_LOG_LEVEL = 4
CPU_NAMES = {"fpu": 1, "cpu": 2, "ins": 4}
"""Bits of ``cpu_cap`` that have a name; CRIU always sets the fourth, image."""
CPU_ALL = 7
CPU_DEFAULT = CPU_NAMES["fpu"] | CPU_NAMES["ins"]
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


class Takes(Enum):
    """Whether a long option takes a value."""

    NOTHING = auto()
    PERHAPS = auto()
    VALUE = auto()


class Spelling:
    """Converts values to words behind a flag (None: the flag alone), and back.

    ``write`` and ``read`` raise ``ValueError``, with the reason, for what cannot be converted.
    """

    takes = Takes.VALUE

    def write(self, value: Any) -> list[str | None]:
        raise NotImplementedError

    def read(self, word: str | None, before: Any) -> object:
        """The value; ``before`` is the value of the preceding flags."""
        raise NotImplementedError

    def accepts(self, word: str | None) -> bool:
        """Whether the value is of this kind, if several kinds share a flag."""
        return self.takes is Takes.PERHAPS or (word is None) == (self.takes is Takes.NOTHING)


@dataclass(frozen=True)
class Alone(Spelling):
    """A flag without a value, which stands for one value only."""

    means: object = True
    takes = Takes.NOTHING

    def write(self, value: Any) -> list[str | None]:
        if value != self.means:
            raise ValueError(f"only {self.means!r} can be expressed; leave it unset")
        return [None]

    def read(self, word: str | None, before: Any) -> object:
        return self.means


@dataclass(frozen=True)
class Keyword(Alone):
    """A flag with one fixed value, which means True."""

    word: str = ""
    takes = Takes.VALUE

    def write(self, value: Any) -> list[str | None]:
        super().write(value)
        return [self.word]

    def accepts(self, word: str | None) -> bool:
        return word == self.word


class Plain(Spelling):
    """Text as it is."""

    def write(self, value: Any) -> list[str | None]:
        if not isinstance(value, str):
            raise ValueError("only a path can be expressed there, not a descriptor")
        return [value]

    def read(self, word: str | None, before: Any) -> object:
        return word


class Digits(Spelling):
    """A whole number."""

    def write(self, value: Any) -> list[str | None]:
        return [str(value if isinstance(value, int) else descriptor_number(value))]

    def read(self, word: str | None, before: Any) -> object:
        return whole_number(word)


class Size(Digits):
    """Bytes, perhaps with a unit."""

    def read(self, word: str | None, before: Any) -> object:
        result = re.fullmatch(r"([0-9]+)([KMG]?)", word or "")
        if not result:
            raise ValueError("a number of bytes is accepted, perhaps with K, M or G")
        return int(result[1]) * UNITS[result[2]]


class Verbosity(Digits):
    """A level, or one more than before for the flag alone and for each ``v``."""

    takes = Takes.PERHAPS

    def read(self, word: str | None, before: Any) -> object:
        if word is None or re.fullmatch("v+", word):
            level = (DEFAULT_LOG_LEVEL if before is None else before) + 1 + len(word or "")
        else:
            level = whole_number(word)
        return min(level, HIGHEST_LOG_LEVEL)  # higher levels log the same


class CpuNames(Spelling):
    """The CPU checks, by name: added to CRIU's default, or to none after ``none``."""

    takes = Takes.PERHAPS

    def write(self, value: Any) -> list[str | None]:
        names = [name for name, bit in CPU_NAMES.items() if value & bit]
        if value & ~CPU_ALL or not names:
            rule = "a sum of 1 (fpu), 2 (cpu) and 4 (ins) can be expressed; 8 is always set"
            raise ValueError(rule)
        return [",".join(["none", *names])]

    def read(self, word: str | None, before: Any) -> object:
        mask: int = CPU_DEFAULT if before is None else before
        if word is None:
            return mask | CPU_ALL
        inverse = False
        for token in re.findall(r"\^|,|fpu|all|none|cpu|ins|.", word, re.S):
            if token == "^":
                inverse = not inverse
            elif token == ",":
                inverse = False
            elif token == "none":
                mask = CPU_ALL if inverse else 0
            elif token in CPU_NAMES or token == "all":
                bits = CPU_NAMES.get(token, CPU_ALL)
                mask = mask & ~bits if inverse else mask | bits
            else:
                raise ValueError("cpu, fpu, ins, all, none, with commas and ^, is accepted")
        if not mask:
            raise ValueError("a request cannot express 'none': CRIU would check the image then")
        return mask


@dataclass(frozen=True)
class Name(Spelling):
    """A member of an enumeration, by its name in small letters."""

    members: type[IntEnum]
    silent: Collection[IntEnum] = ()
    """Members without a name on the command line."""
    also: tuple[tuple[str, IntEnum], ...] = ()
    """Other names that are accepted."""

    def _names(self) -> dict[str, IntEnum]:
        return {m.name.lower(): m for m in self.members if m not in self.silent}

    def write(self, value: Any) -> list[str | None]:
        for name, member in self._names().items():
            if member is value:
                return [name]
        raise ValueError(f"{', '.join(self._names())} can be expressed")

    def read(self, word: str | None, before: Any) -> object:
        result = {**self._names(), **dict(self.also)}.get(word or "")
        if result is None:
            raise ValueError(f"{', '.join(self._names())} is accepted")
        return result


class Net(Spelling):
    """The one namespace that can be empty."""

    def write(self, value: Any) -> list[str | None]:
        if value != kinds.Namespaces.NET:
            raise ValueError("only 'net' can be expressed; leave it unset")
        return ["net"]

    def read(self, word: str | None, before: Any) -> object:
        if word != "net":
            raise ValueError("'net' is accepted")
        return kinds.Namespaces.NET


@dataclass(frozen=True)
class Structured(Spelling):
    """A structured value, by its text."""

    cls: type[Any]

    def write(self, value: Any) -> list[str | None]:
        return [value.text()]

    def read(self, word: str | None, before: Any) -> object:
        return self.cls.parse(word)


@dataclass(frozen=True)
class Each(Spelling):
    """A list: the flag again for each item."""

    item: Spelling

    def write(self, value: Any) -> list[str | None]:
        return [word for item in value for word in self.item.write(item)]

    def read(self, word: str | None, before: Any) -> object:
        return (*(before or ()), self.item.read(word, None))


class Inodes(Digits):
    """A list of numbers: written one by one, read with commas too."""

    def write(self, value: Any) -> list[str | None]:
        if 0 in value:
            raise ValueError("an inode's number is 1 or more there")
        return [str(inode) for inode in value]

    def read(self, word: str | None, before: Any) -> object:
        numbers = [whole_number(part) for part in (word or "").split(",") if part]
        if 0 in numbers:
            raise ValueError("an inode's number is 1 or more")
        return (*(before or ()), *numbers)


def whole_number(word: str | None) -> int:
    """The number of a word of decimal digits."""
    if word is None or not re.fullmatch(r"[0-9]{1,19}", word):
        raise ValueError("a whole number is accepted")
    return int(word)


SPECIAL: dict[str, Spelling] = {
    "manage_cgroups_mode": Name(CgroupMode, silent=(CgroupMode.DEFAULT,)),
    "network_lock": Name(NetworkLock, also=(("none", NetworkLock.SKIP),)),
    "auto_ext_mnt": Keyword(word="auto"),
    "unix_sks": Inodes(),
    "ghost_limit": Size(),
    "cpu_cap": CpuNames(),
    "compress": Alone(CompressMode.BLOCK),
    "compress_block_size": Size(),
    "log_level": Verbosity(),
}
"""Options whose text differs from that of their kind."""


def spelling(row: Row) -> Spelling:
    """The conversion of the values of a row."""
    return SPECIAL.get(row.name) or _by_kind(row.kind)


def _by_kind(kind: kinds.Kind) -> Spelling:
    match kind:
        case kinds.Flag():
            return Alone()
        case kinds.Number() | kinds.FileDescriptor():
            return Digits()
        case kinds.Mode():
            return Name(kind.members)
        case kinds.Namespaces():
            return Net()
        case kinds.Text() | kinds.FilePath() | kinds.Directory():
            return Plain()
        case kinds.Item():
            return Structured(kind.cls)
        case kinds.ListOf():
            return Each(_by_kind(kind.item))
    raise AssertionError(f"{kind} has no spelling")
