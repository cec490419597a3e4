"""How options are written as words: what command lines and configuration files share.

Both name an option by its long option (the row's ``flag``), with a value where it has one.
:func:`say` goes from options to words, :class:`Reader` back. The way out is exact: what would
come back as something else is refused. Facts: CRIU's ``criu/config.c``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from . import _kinds as kinds
from ._options import TABLE, Row
from .enums import CgroupMode, CompressMode, NetworkLock
from .errors import OptionError, Problem
from .opts import CriuOpts
from .values import PageServer, descriptor_number

Opts = TypeVar("Opts", bound=CriuOpts)

DEFAULT_LOG_LEVEL = 2
HIGHEST_LOG_LEVEL = 4
CPU_NAMES = {"fpu": 1, "cpu": 2, "ins": 4}
"""Bits of ``cpu_cap`` that have a name; the fourth, image, CRIU sets by itself."""
CPU_ALL = 7
CPU_DEFAULT = CPU_NAMES["fpu"] | CPU_NAMES["ins"]
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}

NO_WORDS = {
    "images_dir": "images_directory says the same there",
    "pre_dump": "the verb says it",
    "pidfd_store_sk": "only a request can say it",
    "orphan_pts_master": "only a request can say it",
    "log_to_stderr": "criu logs there whenever no log_file is named",
}
"""Fields that have no word of their own, and why."""


class Word(NamedTuple):
    """A long option as it is said."""

    flag: str
    """With its dashes."""
    value: str | None = None
    field: str = ""
    """The field that it says."""


class Takes(Enum):
    """Whether a long option takes a value."""

    NOTHING = auto()
    PERHAPS = auto()
    VALUE = auto()


# ---- the spelling of one option's value ----


class Spelling:
    """Values as the words behind a flag (None: the flag alone), and back.

    ``write`` and ``read`` raise ``ValueError`` with the reason why that cannot be.
    """

    takes = Takes.VALUE

    def write(self, value: Any) -> list[str | None]:
        raise NotImplementedError

    def read(self, word: str | None, before: Any) -> object:
        """The value, where ``before`` is what earlier words have made of it."""
        raise NotImplementedError

    def accepts(self, word: str | None) -> bool:
        """Whether this is the spelling meant, of several that share a flag."""
        return self.takes is Takes.PERHAPS or (word is None) == (self.takes is Takes.NOTHING)


@dataclass(frozen=True)
class Alone(Spelling):
    """A flag without a value; it stands for one value only."""

    means: object = True
    takes = Takes.NOTHING

    def write(self, value: Any) -> list[str | None]:
        if value != self.means:
            raise ValueError(f"only {self.means!r} can be said; leave it unset")
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
            raise ValueError("only a path can be said there, not a descriptor")
        return [value]

    def read(self, word: str | None, before: Any) -> object:
        return word


class Digits(Spelling):
    """A whole number."""

    def write(self, value: Any) -> list[str | None]:
        return [str(descriptor_number(value) if isinstance(value, kinds.HasFileno) else value)]

    def read(self, word: str | None, before: Any) -> object:
        return _number(word)


class Size(Digits):
    """Bytes, perhaps with a unit."""

    def read(self, word: str | None, before: Any) -> object:
        found = re.fullmatch(r"([0-9]+)([KMG]?)", word or "")
        if not found:
            raise ValueError("a number of bytes is accepted, perhaps with K, M or G")
        return int(found[1]) * UNITS[found[2]]


class Verbosity(Digits):
    """A level, or one more than before for the flag alone and for each ``v``."""

    takes = Takes.PERHAPS

    def read(self, word: str | None, before: Any) -> object:
        if word is None or re.fullmatch("v+", word):
            level = (DEFAULT_LOG_LEVEL if before is None else before) + 1 + len(word or "")
        else:
            level = _number(word)
        return min(level, HIGHEST_LOG_LEVEL)  # CRIU has nothing more to say above it


class CpuNames(Spelling):
    """What to check of the CPU, by name: added to CRIU's default, or to nothing after ``none``."""

    takes = Takes.PERHAPS

    def write(self, value: Any) -> list[str | None]:
        names = [name for name, bit in CPU_NAMES.items() if value & bit]
        if value & ~CPU_ALL or not names:
            raise ValueError("a sum of 1 (fpu), 2 (cpu) and 4 (ins) can be said; 8 is always set")
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
            raise ValueError("a request cannot say 'none': CRIU then still looks at the image")
        return mask


@dataclass(frozen=True)
class Name(Spelling):
    """A member of an enumeration, by its name in small letters."""

    members: type[IntEnum]
    silent: Collection[IntEnum] = ()
    """Members that have no word."""
    also: tuple[tuple[str, IntEnum], ...] = ()
    """Other words that are understood."""

    def _names(self) -> dict[str, IntEnum]:
        return {m.name.lower(): m for m in self.members if m not in self.silent}

    def write(self, value: Any) -> list[str | None]:
        for name, member in self._names().items():
            if member is value:
                return [name]
        raise ValueError(f"{', '.join(self._names())} can be said")

    def read(self, word: str | None, before: Any) -> object:
        found = {**self._names(), **dict(self.also)}.get(word or "")
        if found is None:
            raise ValueError(f"{', '.join(self._names())} is accepted")
        return found


class Net(Spelling):
    """The one namespace that can be empty."""

    def write(self, value: Any) -> list[str | None]:
        if value != kinds.Namespaces.NET:
            raise ValueError("only 'net' can be said; leave it unset")
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
        numbers = [_number(part) for part in (word or "").split(",") if part]
        if 0 in numbers:
            raise ValueError("an inode's number is 1 or more")
        return (*(before or ()), *numbers)


def _number(word: str | None) -> int:
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
"""Options that are not written as their kind is."""


def spelling(row: Row) -> Spelling:
    """How the values of a row are written."""
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
        case kinds.Text() | kinds.FilePath() | kinds.Directory() | kinds.Argument():
            return Plain()
        case kinds.Item():
            return Structured(kind.cls)
        case kinds.ListOf():
            return Each(_by_kind(kind.item))
    raise AssertionError(f"{kind} has no spelling")


# ---- from options to words ----


def say(
    opts: CriuOpts, unsayable: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[Word], list[Problem]]:
    """The words for all that is set, and what cannot be said; ``unsayable`` adds to the latter.

    An empty list says nothing in a request either, and is left out.
    """
    words: list[Word] = []
    problems: list[Problem] = []
    for row, value in opts.items():
        if value == ():
            continue
        try:
            why = NO_WORDS.get(row.name) or unsayable.get(row.name)
            if why or row.flag is None:
                raise ValueError(f"cannot be said there: {why or 'no release of criu has a word'}")
            if row.implies and getattr(opts, row.implies) is not True:
                raise ValueError(f"{row.flag} says {row.implies}=True as well: set it")
            words += _ITEMS[row.name](opts) if row.name in _ITEMS else _say(row, row.flag, value)
        except ValueError as problem:
            problems.append(Problem(row.name, value, str(problem)))
    return words, problems


def _say(row: Row, flag: str, value: Any) -> list[Word]:
    if value is False and row.negates:
        return [Word("--no-" + flag.removeprefix("--"), None, row.name)]
    return [Word(flag, word, row.name) for word in spelling(row).write(value)]


def _say_page_server(opts: CriuOpts) -> list[Word]:
    server = opts.page_server
    assert isinstance(server, PageServer)
    words = [] if opts.lazy_pages else [Word("--page-server")]
    if server.address is not None:
        words.append(Word("--address", server.address))
    if server.port is not None:
        if not server.port:
            raise ValueError("port 0 cannot be said")
        words.append(Word("--port", str(server.port)))
    if server.fd is not None:
        words.append(Word("--ps-socket", str(server.fd)))
    if not words:
        raise ValueError("with lazy_pages, only an address, port or descriptor can be said")
    return [word._replace(field="page_server") for word in words]


_ITEMS: dict[str, Callable[[CriuOpts], list[Word]]] = {"page_server": _say_page_server}
"""Fields that take several flags."""

_PARTS = {"--address": "address", "--port": "port", "--ps-socket": "fd"}
"""The flags with the fields of ``PageServer``."""

_SINGLE = frozenset(("--tree", "--exec-cmd", "--page-server", *_PARTS))
"""Flags that :class:`Reader` knows by itself."""


# ---- from words to options ----


def _rows_by_flag() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in TABLE:
        if row.field and row.flag and row.name not in NO_WORDS and row.flag not in _SINGLE:
            found.setdefault(row.flag, []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: not isinstance(spelling(row), Keyword))
    return found


ROWS = _rows_by_flag()
NEGATIONS = {"--no-" + row.flag[2:]: row for row in TABLE if row.negates and row.flag}
SHORT = {row.short: row.flag for row in TABLE if row.short and row.flag}

IMPLIED = frozenset(("--restore-detached", "--no-default-config"))
"""Long options that ask for nothing: over its socket CRIU always detaches from what it restores,
and which files it reads is not the options' matter."""

ELSEWHERE = {
    "--restore-sibling": "restore_child() does that",
    "--help": "asks for no verb",
    "--version": "version() asks for that",
    "--action-script": "on_notify does that",
    "--pidfile": "the result of the verb has the pid",
    "--no-page-server": "leave page_server unset",
    **dict.fromkeys(
        "--no-restore-detached --no-restore-sibling --daemon --no-daemon --close --log-pid "
        "--no-log-pid --ms --libdir --feature --extra --no-extra --experimental "
        "--no-experimental --all --deprecated --no-deprecated --file-validation "
        "--ghost-fiemap --no-ghost-fiemap --allow-uprobes --no-allow-uprobes".split(),
        "CRIU's requests cannot ask for it",
    ),
}
"""Long options of ``criu`` that are no field, and what to do instead."""

_WITH_VALUE = frozenset(
    "--tree --action-script --pidfile --close --libdir --feature --file-validation".split()
) | set(_PARTS)


class Reader:
    """Collects what words say, and what is wrong with them."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self.pid: int | None = None
        self.executes = False
        """Whether a command is to be run after the restore."""
        self._asks_server = False
        self._server: dict[str, str | int] = {}

    def takes(self, flag: str) -> Takes:
        """Whether a long option takes a value; one that is not known takes what it is given."""
        if flag in _WITH_VALUE:
            return Takes.VALUE
        if flag in NEGATIONS or flag in ELSEWHERE or flag in IMPLIED or flag in _SINGLE:
            return Takes.NOTHING
        found = {spelling(row).takes for row in ROWS.get(flag, ())}
        return found.pop() if len(found) == 1 else Takes.PERHAPS

    def take(self, flag: str, value: str | None = None) -> None:
        """One long option as it was said."""
        takes = self.takes(flag)
        try:
            if value is None and takes is Takes.VALUE:
                raise ValueError("needs a value")
            if value is not None and takes is Takes.NOTHING:
                raise ValueError("takes no value")
            if flag in _SINGLE:
                self._take(flag, value or "")
            else:
                self._set(flag, value)
        except ValueError as problem:
            self.problems.append(Problem(flag, value, str(problem)))

    def _take(self, flag: str, value: str) -> None:
        if flag == "--exec-cmd":
            self.executes = True
        elif flag == "--page-server":
            self._asks_server = True
        elif flag == "--address":
            self._server["address"] = value
        else:
            number = _number(value)
            if not number and flag != "--ps-socket":
                raise ValueError("1 or more is accepted")
            if flag == "--tree":
                self.pid = number
            else:
                self._server[_PARTS[flag]] = number

    def _set(self, flag: str, value: str | None) -> None:
        if flag in ELSEWHERE:
            raise ValueError(f"is no option of CriuOpts: {ELSEWHERE[flag]}")
        if flag in NEGATIONS:
            self.fields[NEGATIONS[flag].name] = False
        elif flag in ROWS:
            rows = ROWS[flag]
            row = next((row for row in rows if spelling(row).accepts(value)), rows[0])
            self.fields[row.name] = spelling(row).read(value, self.fields.get(row.name))
            if row.implies:
                self.fields[row.implies] = True
        elif flag not in IMPLIED:
            raise ValueError("is no option of criu that is known here (abbreviations are not read)")

    def finish(self, command: Sequence[str] = ()) -> None:
        """Put together what several words say; ``command`` is what ``--exec-cmd`` is to run."""
        lazy = self.fields.get("lazy_pages")
        if self._asks_server and lazy:
            rule = "not with --lazy-pages: asked over its socket, CRIU then serves pages itself"
            self.problems.append(Problem("--page-server", None, rule))
        elif self._asks_server or (lazy and self._server):
            self.fields["page_server"] = self._server
        elif self._server:
            flag = next(flag for flag, part in _PARTS.items() if part in self._server)
            rule = "says nothing without --page-server or --lazy-pages"
            self.problems.append(Problem(flag, None, rule))
        if self.executes and command:
            self.fields["exec_cmd"] = list(command)
        elif self.executes:
            self.problems.append(Problem("--exec-cmd", None, "needs a command behind '--'"))

    def make(self, cls: type[Opts]) -> Opts:
        """The options, or ``OptionError`` with all that is wrong."""
        try:
            opts = cls(**self.fields)
        except OptionError as refused:
            raise OptionError([*self.problems, *refused.problems]) from None
        if self.problems:
            raise OptionError(self.problems)
        return opts
