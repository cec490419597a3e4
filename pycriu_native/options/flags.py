"""Converts options to and from the long options of command lines and configuration files.

Each option has a flag (``flag`` of its row), mostly with a value. :func:`to_flags` converts options
to flags, :class:`FlagParser` converts flags to options. Options that would be read back as other
values are refused. Source: CRIU's ``criu/config.c``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from ..errors import OptionError, Problem
from .fields import Fields
from .flag_values import Keyword, Takes, spelling, whole_number
from .table import TABLE, Row
from .values import PageServer

Opts = TypeVar("Opts", bound=Fields)

NO_WORDS = {
    "images_dir": "images_directory has the same meaning there",
    "pre_dump": "the command expresses it",
    "pidfd_store_sk": "only a request can have it",
    "orphan_pts_master": "only a request can have it",
    "log_to_stderr": "criu logs there unless log_file is set",
}
"""Fields without a flag, and the reason."""


class Word(NamedTuple):
    """One flag with its value."""

    flag: str
    """With its dashes."""
    value: str | None = None
    field: str = ""
    """The field that it sets."""


# ---- from options to flags ----


def to_flags(
    opts: Fields, without_flag: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[Word], list[Problem]]:
    """The flags of all options that are set, and a problem for each that cannot be expressed.

    ``without_flag`` has further fields that cannot be expressed, with the reason. Empty lists are
    omitted: they have no effect in a request either.
    """
    words: list[Word] = []
    problems: list[Problem] = []
    for row, value in opts.items():
        if value == ():
            continue
        try:
            why = NO_WORDS.get(row.name) or without_flag.get(row.name)
            if why or row.flag is None:
                reason = why or "no release of criu has a flag"
                raise ValueError(f"cannot be expressed there: {reason}")
            if row.implies and getattr(opts, row.implies) is not True:
                raise ValueError(f"{row.flag} implies {row.implies}=True: set it too")
            if row.name == "page_server":
                words += _page_server_flags(opts)
            elif value is False and row.negates:
                words.append(Word("--no-" + row.flag.removeprefix("--"), None, row.name))
            else:
                words += [Word(row.flag, word, row.name) for word in spelling(row).write(value)]
        except ValueError as problem:
            problems.append(Problem(row.name, value, str(problem)))
    return words, problems


def _page_server_flags(opts: Fields) -> list[Word]:
    server = opts.page_server
    assert isinstance(server, PageServer)
    words = [] if opts.lazy_pages else [Word("--page-server")]
    if server.address is not None:
        words.append(Word("--address", server.address))
    if server.port is not None:
        if not server.port:
            raise ValueError("port 0 cannot be expressed")
        words.append(Word("--port", str(server.port)))
    if server.fd is not None:
        words.append(Word("--ps-socket", str(server.fd)))
    if not words:
        raise ValueError("with lazy_pages, only an address, port or descriptor can be expressed")
    return [word._replace(field="page_server") for word in words]


_PARTS = {"--address": "address", "--port": "port", "--ps-socket": "fd"}
"""The flags of the fields of ``PageServer``."""

_NO_ROW = frozenset(("--tree", "--exec-cmd", "--page-server", *_PARTS))
"""Flags that :class:`FlagParser` does not read by their row."""


# ---- from flags to options ----


def _rows_by_flag() -> dict[str, list[Row]]:
    result: dict[str, list[Row]] = {}
    for row in TABLE:
        if row.field and row.flag and row.name not in NO_WORDS and row.flag not in _NO_ROW:
            result.setdefault(row.flag, []).append(row)
    for rows in result.values():
        rows.sort(key=lambda row: not isinstance(spelling(row), Keyword))
    return result


ROWS = _rows_by_flag()
NEGATIONS = {"--no-" + row.flag[2:]: row for row in TABLE if row.negates and row.flag}
SHORT = {row.short: row.flag for row in TABLE if row.short and row.flag}

IMPLIED = frozenset(("--no-default-config", "--close"))
"""Flags that are accepted and have no field: a worker has its own configuration, and does not
inherit descriptors that would have to be closed."""

ELSEWHERE = {
    "--help": "it belongs to no verb",
    "--ms": "criu refuses it too: --extra and --experimental replace it",
}
"""Flags of ``criu`` without a field, and the reason."""

BOTH_CHECKS = "--all"

_SWITCHES = {
    "--restore-detached": "detached",
    "--daemon": "detached",
    "--restore-sibling": "sibling",
    "--page-server": "_has_server",
}
_ATTRIBUTES = {
    "--exec-cmd": ("executes", True),
    "--version": ("prints_version", True),
    **{flag: (name, True) for flag, name in _SWITCHES.items()},
    **{"--no-" + flag[2:]: (name, False) for flag, name in _SWITCHES.items()},
}
"""The flags that set an attribute of :class:`FlagParser`, and its value."""

_WITH_VALUE = frozenset(("--tree", *_PARTS, "--close"))
_ALONE = frozenset((*ELSEWHERE, *IMPLIED, *_ATTRIBUTES, BOTH_CHECKS))


KNOWN = frozenset((*ROWS, *NEGATIONS, *_WITH_VALUE, *_ALONE))
"""All long options of all releases that are read."""


class RefusedByCriuError(ValueError):
    """A problem for which the program ends, in every call."""


class FlagParser:
    """Collects the values of flags, and their problems."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self.refused: set[str] = set()
        """The fields of the problems for which ``criu`` itself ends."""
        self.pid: int | None = None
        self.executes = False
        """Whether a command is run after the restore."""
        self.detached = False
        """Whether a restore, or a daemon, runs in the background."""
        self.sibling = False
        """Whether the restored root becomes a child of the caller."""
        self.prints_version = False
        """Whether the program only prints its version."""
        self._has_server = False
        self._server: dict[str, str | int] = {}

    def takes(self, flag: str) -> Takes:
        """Whether a flag takes a value; an unknown one may."""
        if flag in _WITH_VALUE:
            return Takes.VALUE
        if flag in NEGATIONS or flag in _ALONE:
            return Takes.NOTHING
        result = {spelling(row).takes for row in ROWS.get(flag, ())}
        return result.pop() if len(result) == 1 else Takes.PERHAPS

    def take(self, flag: str, value: str | None = None) -> None:
        """Read one flag with its value."""
        takes = self.takes(flag)
        try:
            if value is None and takes is Takes.VALUE:
                raise RefusedByCriuError("needs a value")
            if value is not None and takes is Takes.NOTHING:
                raise RefusedByCriuError("takes no value")
            self._set(flag, value)
        except ValueError as problem:
            self.problems.append(Problem(flag, value, str(problem)))
            if isinstance(problem, RefusedByCriuError):
                self.refused.add(flag)

    def _set(self, flag: str, value: str | None) -> None:
        if flag in ELSEWHERE:
            raise RefusedByCriuError(f"is no option of CriuOpts: {ELSEWHERE[flag]}")
        if flag in _ATTRIBUTES:
            setattr(self, *_ATTRIBUTES[flag])
        elif flag == BOTH_CHECKS:
            self.fields |= {"check_extra": True, "check_experimental": True}
        elif flag == "--address":
            self._server["address"] = value or ""
        elif flag in _WITH_VALUE:
            self._take_number(flag, whole_number(value))
        elif flag in NEGATIONS:
            self.fields[NEGATIONS[flag].name] = False
        elif flag in ROWS:
            rows = ROWS[flag]
            row = next((row for row in rows if spelling(row).accepts(value)), rows[0])
            self.fields[row.name] = spelling(row).read(value, self.fields.get(row.name))
            if row.implies:
                self.fields[row.implies] = True
        elif flag not in IMPLIED:
            raise RefusedByCriuError("is no known option of criu")

    def _take_number(self, flag: str, number: int) -> None:
        if flag == "--close":
            return  # a worker does not inherit the caller's descriptors
        if not number and flag != "--ps-socket":
            raise ValueError("1 or more is accepted")
        if flag == "--tree":
            self.pid = number
        else:
            self._server[_PARTS[flag]] = number

    def finish(
        self,
        command: Sequence[str] = (),
        *,
        lazy: bool = False,
        serves: bool = False,
        pages: bool = True,
    ) -> None:
        """Set the fields that depend on several flags; ``command`` is that of ``--exec-cmd``.

        ``serves``: this is a page server, which listens on every address without ``--address``.
        ``pages`` is false for commands that ignore the flags of a page server.
        """
        lazy = lazy or bool(self.fields.get("lazy_pages"))
        everywhere = serves and "fd" not in self._server
        server = {"address": "0.0.0.0", "port": 0} if everywhere else {}
        if not pages:
            pass
        elif self._has_server and lazy and not serves:
            rule = "not with --lazy-pages, with which CRIU serves the pages itself"
            self.problems.append(Problem("--page-server", None, rule))
        elif self._has_server and not (serves or self._server):
            rule = "needs --address and --port, or --ps-socket"
            self.problems.append(Problem("--page-server", None, rule))
        elif self._has_server or serves or (lazy and self._server):
            self.fields["page_server"] = {**server, **self._server}
        if self.executes and command:
            self.fields["exec_cmd"] = list(command)
        elif self.executes:
            self.problems.append(Problem("--exec-cmd", None, "needs a command after '--'"))

    def make(self, cls: type[Opts]) -> Opts:
        """The options, or ``OptionError`` with all problems."""
        try:
            opts = cls(**self.fields)
        except OptionError as refused:
            raise OptionError([*self.problems, *refused.problems]) from None
        if self.problems:
            raise OptionError(self.problems)
        return opts
