"""The effect of a call, computed without the call.

Nothing is changed. The ``criu`` program runs only for its release, if an option is newer than
CRIU 3.17, and the release is cached. The fields of the request are set in a handle of libcriu, as
by the call itself, and read back from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from .._calls import requirements
from .._calls.prepare import Directories, fill
from .._calls.request import Request
from .._calls.verbs import for_pre_dump
from .._checks import option_rules
from .._native.ffi import LIBCRIU_VERSION
from .._support.frozen_dataclass import replace
from .._system.process_identity import is_pid
from .._transport.base import Via
from .._transport.worker import Worker
from .._wire.messages import REQUEST_TYPES, Handle, setter_for
from ..enums import Verb
from ..errors import CriuError, OptionError, Problem
from ..options import command_line
from ..options.criu_opts import CriuOpts
from ..options.fields import foreign_options
from ..options.table import BY_FIELD, BY_WIRE
from ..options.values import PageServer, WireValue
from .config_effects import configuration_files, crash
from .explanation import Explanation, Sent


def effects_of(opts: CriuOpts, verb: Verb, pid: int | None, via: Via | None) -> Explanation:
    """The result of :func:`~pycriu_native.explain`, whose arguments these are."""
    if str(verb) not in REQUEST_TYPES:
        raise OptionError([Problem("verb", str(verb), "is no request that has options")])
    if verb is Verb.DUMP and opts.pre_dump:
        verb = Verb.PRE_DUMP
    if verb is Verb.PRE_DUMP:
        opts = for_pre_dump(opts)
    via = via or Worker()
    number = pid if pid is None or is_pid(pid) else None  # another value is a broken rule
    request = Request(verb=verb, opts=opts, pid=number, via=via)
    problems = list(_broken_rules(request, pid))
    lacking = list(_lacking(request))
    wire = _on_the_wire(request, {problem.field for problem in lacking}, problems)
    command, not_expressed = _command(request)
    configuration = tuple(configuration_files(opts, via))
    problems += crash(opts, configuration)
    return Explanation(
        verb=verb,
        pid=pid,
        libcriu=LIBCRIU_VERSION,
        program=_name(via),
        wire=wire,
        command=command,
        not_expressed=not_expressed,
        problems=tuple(problems),
        lacking=tuple(lacking),
        configuration=configuration,
    )


def _name(via: Via) -> str:
    try:
        return via.name()
    except CriuError as error:
        return f"no criu ({error})"


def _broken_rules(request: Request, pid: int | None) -> Iterator[Problem]:
    try:
        option_rules.check(request.opts, request.verb, pid)
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
        super().__init__(request, owned)

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
    words, not_expressed = command_line.command(request.opts, request.verb, request.pid)
    foreign = {problem.field for problem in foreign_options(request.opts, request.verb)}
    server = request.opts.page_server
    if isinstance(server, PageServer) and server.clear_text:
        rule = "criu has no option for clear_text: it does not require a permission"
        not_expressed = [*not_expressed, Problem("page_server", server, rule)]
    return tuple(words), tuple(p for p in not_expressed if p.field not in foreign)
