"""What a call would do, shown without doing it.

Nothing is touched and nothing runs but, at most, one question for the release of the ``criu``
program (asked only if an option is younger than CRIU 3.17, and remembered). What goes on the
wire is what the call itself would put into libcriu's handle, read back from there.

CRIU reads configuration files beside the request. What wins, from CRIU's ``criu/config.c`` and
``criu/cr-service.c`` (4.2; the effects on ``leave_running``, ``log_level`` and ``log_file`` seen
in 4.2.1 and 4.3): ``/etc/criu/default.conf``, ``$HOME/.criu/default.conf`` and the file that the
environment names in ``CRIU_CONFIG_FILE`` are read first, and the request is put over them; the
request's own ``config_file`` is read after that, and is put over the request.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from . import _argv, _requirements, _rules
from ._config import read_config
from ._ffi import LIBCRIU_VERSION
from ._kinds import ListOf
from ._message import Handle, setter_for
from ._options import BY_FIELD, BY_WIRE, Row
from ._reach import Via
from ._session import Directories, Request, fill
from ._worker import Worker
from .enums import Verb
from .errors import CriuError, OptionError, Problem
from .opts import VERB_MASK, CriuOpts
from .values import WireValue, descriptor_number

__all__ = ["ConfigurationFile", "Explanation", "Sent", "Setting", "explain"]

GLOBAL_FILE = "/etc/criu/default.conf"
USER_FILE = ".criu/default.conf"
ENVIRONMENT = "CRIU_CONFIG_FILE"

LARGEST_FILE = 2**20
"""Bytes read of a configuration file."""

DEAF_TO_FALSE = frozenset(
    ("leave_running", "leave_stopped", "tls", "tls_no_cn_verify", "mntns_compat_mode")
)
"""Fields of which CRIU hears only True: a False does not take back what a file has set."""

ALWAYS_ASKED = {
    "log_level": "the request always sets it",
    "log_file": "the request always sets it",
    "images_directory": "the request always names the directory",
}
"""Options that no file read before the request decides, and why."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One field of the request."""

    wire: str
    """Its name in ``rpc.proto``."""
    value: WireValue
    """What is sent; for a directory given by path: that path. Its descriptor is sent."""
    by: str
    """The function of libcriu that sets it, or ``wire field``."""
    field: str | None
    """The field of ``CriuOpts`` that it comes from; None: the call adds it."""

    def __str__(self) -> str:
        source = self.field or "added by the call"
        return f"{self.wire} = {self.value!r}  ({source}; {self.by})"


@dataclass(frozen=True, slots=True)
class Setting:
    """One option of a configuration file."""

    option: str
    """The field of ``CriuOpts``, or the option's own name where there is none."""
    value: object
    """What the file sets it to."""
    effect: str
    """What that means for this call."""
    applies: bool
    """Whether the call behaves otherwise than without the file."""

    def __str__(self) -> str:
        return f"{self.option}={self.value!r}: {self.effect}"


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """A configuration file that CRIU reads for this call."""

    path: str
    """Where it is."""
    why: str
    """Why CRIU reads it."""
    settings: tuple[Setting, ...]
    """What it sets, options that are no field of ours included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What a call would do. ``str()`` is for people to read."""

    verb: Verb
    """The verb; a dump with ``pre_dump`` set is a pre-dump."""
    pid: int | None
    """The process."""
    libcriu: str
    """The release of the libcriu that is loaded."""
    program: str
    """The CRIU that would be asked."""
    wire: tuple[Sent, ...]
    """What goes on the wire, but for what this libcriu has no field for."""
    command: tuple[str, ...]
    """The command line that does the same, but for ``unsaid``."""
    unsaid: tuple[Problem, ...]
    """What the command line cannot say."""
    problems: tuple[Problem, ...]
    """Why the call would be refused, by its rules."""
    lacking: tuple[Problem, ...]
    """What this libcriu and this CRIU lack for it. (The kernel is not asked.)"""
    configuration: tuple[ConfigurationFile, ...]
    """The configuration files that CRIU reads for it, in CRIU's order."""

    def __str__(self) -> str:
        what = str(self.verb) if self.pid is None else f"{self.verb} of pid {self.pid}"
        return "\n".join(
            [
                f"{what}, with libcriu {self.libcriu} and {self.program}",
                *_section("on the wire", self.wire),
                *_section("as a command line", [shlex.join(self.command)] if self.command else []),
                *_section("not sayable there", self.unsaid),
                *_section("refused, because", self.problems),
                *_section("lacking", self.lacking),
                *(
                    line
                    for file in self.configuration
                    for line in _section(f"{file.path} ({file.why})", file.settings, "sets nothing")
                ),
            ]
        )


def _section(title: str, lines: Any, empty: str = "") -> list[str]:
    shown = [f"  {line}" for line in lines] or ([f"  {empty}"] if empty else [])
    return [f"{title}:", *shown] if shown else []


def explain(
    opts: CriuOpts, verb: Verb | str, pid: int | None = None, via: Via | None = None
) -> Explanation:
    """What ``verb`` would do with these options; raises for a verb without options, nothing else.

    ``pid`` and ``via`` as for the verb. Shown are also calls that would be refused, with why.
    """
    verb = Verb(verb)
    if verb not in VERB_MASK:
        raise OptionError([Problem("verb", str(verb), "takes no options")])
    if verb is Verb.DUMP and opts.pre_dump:
        verb = Verb.PRE_DUMP
    via = via or Worker()
    request = Request(verb=verb, opts=opts, pid=pid, via=via)
    problems = list(_broken_rules(request))
    lacking = list(_lacking(request))
    wire = _on_the_wire(request, {problem.field for problem in lacking}, problems)
    command, unsaid = _command(request)
    configuration = tuple(_configuration(opts, via))
    problems += _crash(opts, configuration)
    return Explanation(
        verb=verb,
        pid=pid,
        libcriu=LIBCRIU_VERSION,
        program=_name(via),
        wire=wire,
        command=command,
        unsaid=unsaid,
        problems=tuple(problems),
        lacking=tuple(lacking),
        configuration=configuration,
    )


def _name(via: Via) -> str:
    try:
        return via.name()
    except CriuError as error:
        return f"no criu ({error})"


def _broken_rules(request: Request) -> Iterator[Problem]:
    try:
        _rules.check(request.opts, request.verb, request.pid)
    except OptionError as refused:
        yield from refused.problems
    yield from _requirements._by_position(request)


def _lacking(request: Request) -> Iterator[Problem]:
    yield from _requirements._by_library(request.opts)
    try:
        if request.via.identity() is not None:
            yield from _requirements._by_program(request.opts, request.via)
    except CriuError as error:
        yield Problem("via", request.via, str(error))


# ---- the wire ----


class _Unopened(Directories):
    """Stand-ins for directories: the call opens them, and makes a missing one; we do not."""

    def __init__(self, opts: CriuOpts) -> None:
        self.paths: dict[str, str] = {}
        self.images = self._stand_in("images_dir_fd", opts.images_directory)
        self.work = self._stand_in("work_dir_fd", opts.work_directory)

    def _stand_in(self, field: str, directory: Any) -> int | None:
        if not isinstance(directory, str):
            return None if directory is None else descriptor_number(directory)
        self.paths[field] = directory
        return 0


def _on_the_wire(request: Request, lacking: set[str], problems: list[Problem]) -> tuple[Sent, ...]:
    unknown = dict.fromkeys(lacking & set(BY_FIELD))
    known = replace(request, opts=replace(request.opts, **unknown))
    try:
        with ExitStack() as owned:
            directories = _Unopened(known.opts)
            handle = owned.enter_context(Handle())
            fill(handle, known, directories, owned)
            read = handle.wire()
    except (CriuError, OSError, TypeError, ValueError) as error:
        problems.append(Problem("opts", request.opts, f"the request cannot be made: {error}"))
        return ()
    return tuple(
        _sent(known.opts, name, directories.paths.get(name, v), v) for name, v in read.items()
    )


def _sent(opts: CriuOpts, wire: str, shown: WireValue, value: WireValue) -> Sent:
    row = BY_WIRE[wire]
    setter = setter_for(row, value)
    by = setter or "wire field"
    if setter and row.repair:
        by += " and wire field"
    given = row.field is not None and getattr(opts, row.field) is not None
    return Sent(wire, shown, by, row.field if given else None)


# ---- the command line ----


def _command(request: Request) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    if request.verb not in _argv.COMMANDS.values():
        return (), ()
    words, unsaid = _argv.command(request.opts, request.verb, request.pid)
    foreign = {problem.field for problem in _rules._belongs(request.opts, request.verb)}
    return tuple(words), tuple(p for p in unsaid if p.field not in foreign)


# ---- configuration files ----


def _configuration(opts: CriuOpts, via: Via) -> Iterator[ConfigurationFile]:
    for path, why in _files_before(via):
        text = _text(path)
        if text is not None:
            yield ConfigurationFile(path, why, tuple(_settings(text, opts, after=False)))
    if opts.config_file is not None:
        path = os.fsdecode(opts.config_file)
        text = _text(path)
        if text is not None:
            why = "config_file, read after the request"
            yield ConfigurationFile(path, why, tuple(_settings(text, opts, after=True)))


def _files_before(via: Via) -> Iterator[tuple[str, str]]:
    yield GLOBAL_FILE, "every CRIU on this system"
    if not isinstance(via, Worker):
        return  # its environment is not ours to see
    environment = {"HOME": "/", **via.env}
    yield os.path.join(environment["HOME"], USER_FILE), "HOME of the worker"
    if ENVIRONMENT in environment:
        yield environment[ENVIRONMENT], f"{ENVIRONMENT} of the worker"


def _text(path: str) -> str | None:
    """A file's text; None where CRIU would find none, and go on without a word."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read(LARGEST_FILE))
    except OSError:
        return None


def _settings(text: str, opts: CriuOpts, *, after: bool) -> Iterator[Setting]:
    reader = read_config(text, lazy=bool(opts.lazy_pages))
    for field, value in reader.fields.items():
        row = BY_FIELD[field]
        shown, asked = _parsed(row, value), getattr(opts, field)
        applies, effect = _after(row, shown, asked) if after else _before(row, shown, asked, opts)
        yield Setting(field, shown, effect, applies)
    for problem in reader.problems:
        yield Setting(problem.field, problem.value, problem.rule, True)


def _parsed(row: Row, value: object) -> object:
    try:
        return row.kind.parse(value)
    except ValueError:
        return value


def _before(row: Row, value: object, asked: Any, opts: CriuOpts) -> tuple[bool, str]:
    """What an option of a file means that is read before the request."""
    if row.name in ALWAYS_ASKED:
        return False, f"has no effect: {ALWAYS_ASKED[row.name]}"
    if asked is None or asked == ():
        return True, "applies: the request does not set it"
    if isinstance(row.kind, ListOf):
        return True, "is added to what the request has"
    if asked is False and row.name in DEAF_TO_FALSE and value is True:
        return True, "applies: CRIU does not hear the False of the request"
    return False, "has no effect: the request wins" if asked != value else "is asked for as well"


def _after(row: Row, value: object, asked: Any) -> tuple[bool, str]:
    """What an option of the request's own file means."""
    if row.name == "log_level":
        return False, f"has no effect: {ALWAYS_ASKED['log_level']}"
    if asked is None or asked == ():
        return True, "applies: the request does not set it"
    if isinstance(row.kind, ListOf):
        return True, "is added to what the request has"
    if asked == value:
        return False, "is asked for as well"
    if row.name == "parent_image" or (row.name == "mntns_compat_mode" and asked):
        return False, "has no effect: the request wins"
    return True, f"wins over the {asked!r} of the request"


def _crash(opts: CriuOpts, files: tuple[ConfigurationFile, ...]) -> Iterator[Problem]:
    for file in files:
        if file.path == opts.config_file and any(s.option == "network_lock" for s in file.settings):
            rule = "network-lock in the file of a request crashes CRIU before 4.2.1; set the field"
            yield Problem("config_file", opts.config_file, rule)
