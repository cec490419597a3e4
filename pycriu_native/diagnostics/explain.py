"""The effect of a call, computed without the call.

Nothing is changed. The ``criu`` program runs only for its release, if an option is newer than
CRIU 3.17, and the release is cached. The fields of the request are set in a handle of libcriu, as
by the call itself, and read back from there.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from .._calls import requirements
from .._calls.prepare import Directories, fill
from .._calls.request import Request
from .._calls.verbs import for_pre_dump
from .._checks import option_rules
from .._native.ffi import LIBCRIU_VERSION
from .._transport.base import Via
from .._transport.worker import Worker
from .._wire.messages import REQUEST_TYPES, Handle, setter_for
from ..enums import Verb
from ..errors import CriuError, OptionError, Problem
from ..options import command_line
from ..options.applicability import foreign_options
from ..options.criu_opts import CriuOpts
from ..options.table import BY_FIELD, BY_WIRE, VERB_MASK
from ..options.values import PageServer, WireValue
from .config_effects import ConfigurationFile, Setting, configuration_files, crash

__all__ = ["ConfigurationFile", "Explanation", "Sent", "Setting", "explain"]


@dataclass(frozen=True, slots=True)
class Sent:
    """One field of the request."""

    wire: str
    """Its name in ``rpc.proto``."""
    value: WireValue
    """The value. For a directory given by path: that path; the call sends its descriptor."""
    by: str
    """The function of libcriu that sets it, or ``wire field``."""
    field: str | None
    """Its field of ``CriuOpts``. None: the call adds it."""

    def __str__(self) -> str:
        source = self.field or "added by the call"
        return f"{self.wire} = {self.value!r}  ({source}; {self.by})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """The effect of a call. ``str()`` is for people."""

    verb: Verb
    """The verb; a dump with ``pre_dump`` set is a pre-dump."""
    pid: int | None
    """The process."""
    libcriu: str
    """The release of the loaded libcriu."""
    program: str
    """The CRIU of the call."""
    wire: tuple[Sent, ...]
    """The fields of the request that this libcriu supports."""
    command: tuple[str, ...]
    """The equivalent command line, without the options in ``unsaid``."""
    unsaid: tuple[Problem, ...]
    """Options that the command line of ``criu`` does not have."""
    problems: tuple[Problem, ...]
    """Rules that the call breaks: it would be refused."""
    lacking: tuple[Problem, ...]
    """Options that this libcriu or this CRIU does not support. The kernel is not checked."""
    configuration: tuple[ConfigurationFile, ...]
    """The configuration files that CRIU reads for it, in CRIU's order."""

    def __str__(self) -> str:
        what = str(self.verb) if self.pid is None else f"{self.verb} of pid {self.pid}"
        return "\n".join(
            [
                f"{what}, with libcriu {self.libcriu} and {self.program}",
                *_section("on the wire", self.wire),
                *_section("as a command line", [shlex.join(self.command)] if self.command else []),
                *_section("not has_flag there", self.unsaid),
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
    """Compute the effect of ``verb`` with these options. Raises only for a verb without options.

    ``pid`` and ``via`` as for the verb. Shown are also calls that would be refused, with why.
    """
    verb = Verb(verb)
    if verb not in VERB_MASK or str(verb) not in REQUEST_TYPES:
        raise OptionError([Problem("verb", str(verb), "is no request that has options")])
    if verb is Verb.DUMP and opts.pre_dump:
        verb = Verb.PRE_DUMP
    if verb is Verb.PRE_DUMP:
        opts = for_pre_dump(opts)
    via = via or Worker()
    request = Request(verb=verb, opts=opts, pid=pid, via=via)
    problems = list(_broken_rules(request))
    lacking = list(_lacking(request))
    wire = _on_the_wire(request, {problem.field for problem in lacking}, problems)
    command, unsaid = _command(request)
    configuration = tuple(configuration_files(opts, via))
    problems += crash(opts, configuration)
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
        option_rules.check(request.opts, request.verb, request.pid)
    except OptionError as refused:
        yield from refused.problems
    yield from requirements.by_trust(request)
    yield from requirements.by_images(request)
    yield from requirements.by_position(request)


def _lacking(request: Request) -> Iterator[Problem]:
    yield from requirements.by_library(request.opts)
    try:
        if request.via.identity() is not None:
            yield from requirements.by_program(request.opts, request.via)
    except CriuError as error:
        yield Problem("via", request.via, str(error))


# ---- the wire ----


class _Unopened(Directories):
    """Placeholders for directories. Only the call itself opens or creates a directory."""

    def __init__(self, request: Request, owned: ExitStack) -> None:
        self.paths: dict[str | None, str] = {}
        """Paths by wire field."""
        super().__init__(request.opts, request.verb, owned)

    def _open(self, directory: object, field: str) -> int:
        if not isinstance(directory, str):
            return super()._open(directory, field)
        self.paths[BY_FIELD[field].wire] = directory
        return 0


def _on_the_wire(request: Request, lacking: set[str], problems: list[Problem]) -> tuple[Sent, ...]:
    unknown = dict.fromkeys(lacking & set(BY_FIELD))
    known = replace(request, opts=replace(request.opts, **unknown))
    try:
        with ExitStack() as owned:
            directories = _Unopened(known, owned)
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
    if request.verb not in command_line.COMMANDS:
        return (), ()
    words, unsaid = command_line.command(request.opts, request.verb, request.pid)
    foreign = {problem.field for problem in foreign_options(request.opts, request.verb)}
    server = request.opts.page_server
    if isinstance(server, PageServer) and server.clear_text:
        rule = "criu has no option for clear_text: it needs no consent to clear text"
        unsaid = [*unsaid, Problem("page_server", server, rule)]
    return tuple(words), tuple(p for p in unsaid if p.field not in foreign)
