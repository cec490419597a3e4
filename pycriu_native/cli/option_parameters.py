"""The options of CRIU as options of a command, made from the option table.

Each has the name, the arguments and the meaning of the option of the ``criu`` program. An option
on the command line replaces the same field of an options file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from .._support.cached_property import cached_property
from ..enums import Verb
from ..errors import OptionError, Problem
from ..options import value_types as kinds
from ..options.criu_opts import CriuOpts
from ..options.flag_values import CpuNames, Name, Size, Takes, spelling
from ..options.flags import NEGATIONS, ROWS, SHORT, FlagParser
from ..options.table import OLDEST, TABLE, VERB_MASK, On, Row, release
from .errors import CONFIG, in_flags

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

BARE = "\0"
"""Placeholder for an omitted optional value; no command line can contain it."""

SERVER = ("--address", "--port", "--ps-socket")
"""Options of a page server with a value."""

CLEAR_TEXT = "--clear-text"
"""An option of this library that ``criu`` does not have."""

OLD_FORMS = ("manage_cgroups", "auto_ext_mnt", "unix_sks")
"""Fields that share the flag of a newer field, which the help describes."""

SELDOM = ("auto_dedup", "empty_ns", "lsm_profile", "skip_in_flight", "status_fd")
"""Options that container runtimes use, but that are rarely typed in a shell."""

_LETTERS = {letter: flag for letter, flag in SHORT.items() if flag != "--config"}

_FLAGS = {
    **{flag: flag for flag in ROWS},
    **{name: row.flag for name, row in NEGATIONS.items()},
    **{f"-{letter}": flag for letter, flag in _LETTERS.items()},
    CONFIG: "--config",
}
"""The long option of CRIU for each form of it on a command line."""


class FieldOption(click.Option):
    """A long option of CRIU's: one field, or several that share it."""

    def __init__(self, flag: str, rows: Sequence[Row]) -> None:
        self.flag = flag
        self.rows = list(rows)
        self.often = any(row.runc and row.name not in SELDOM for row in rows)
        """Whether container runtimes set the option, so that many users need it."""
        self.takes = FlagParser().takes(flag)
        name = CONFIG if flag == "--config" else flag
        short = [f"-{row.short}" for row in rows[:1] if row.short]
        negated = f"/--no-{flag[2:]}" if self.takes is Takes.NOTHING and rows[0].negates else ""
        more: dict[str, Any] = {"is_flag": True, "default": None}
        if self.takes is not Takes.NOTHING:
            more = {"multiple": True, "metavar": _metavar(rows, self.takes)}
        super().__init__([*short, name + negated], **more)
        del self.help  # set by click

    @cached_property
    def help(self) -> str:  # type: ignore[override]
        """The meaning of the first row's field; computed on use, since it parses the source."""
        return _help(self.rows)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Write an option that can be negated as ``--[no-]NAME``."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        name, text = record
        both = f"{self.flag} / --no-{self.flag[2:]}"
        return name.replace(both, f"--[no-]{self.flag[2:]}"), text

    def words(self, value: Any) -> Iterator[tuple[str, str | None]]:
        """The occurrences of the option, as pairs of CRIU's long option and value."""
        if self.takes is Takes.NOTHING:
            yield (self.flag if value else "--no-" + self.flag[2:]), None
        else:
            for word in value:
                yield self.flag, None if word == BARE else word

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the value, which ``FlagParser`` will check."""
        from click.shell_completion import CompletionItem  # runs do without

        for row in self.rows:
            words = _choices(row)
            if words:
                return [CompletionItem(word) for word in words if word.startswith(incomplete)]
            if isinstance(row.kind, kinds.Directory):
                return [CompletionItem(incomplete, type="dir")]
            if isinstance(row.kind, kinds.FilePath):
                return [CompletionItem(incomplete, type="file")]
        return []


def _choices(row: Row) -> list[str]:
    how = spelling(row)
    if isinstance(how, Name):
        return list(how._names())
    return ["net"] if isinstance(row.kind, kinds.Namespaces) else []


def _metavar(rows: Sequence[Row], takes: Takes) -> str:
    words = [_value_name(row) for row in rows if spelling(row).takes is not Takes.NOTHING]
    text = "|".join(dict.fromkeys(words))
    return f"[={text}]" if takes is Takes.PERHAPS else text


def _value_name(row: Row) -> str:
    choices = _choices(row)
    if choices:
        return "|".join(choices)
    item = row.kind.item if isinstance(row.kind, kinds.ListOf) else row.kind
    of_types = (_NAMES_BY_TYPE.get(type(each)) for each in (spelling(row), item))
    return next(filter(None, of_types), _VALUE_NAMES.get(row.name, "TEXT"))


_NAMES_BY_TYPE: dict[type, str] = {
    Size: "BYTES",
    CpuNames: "NAMES",
    kinds.Directory: "DIR",
    kinds.FilePath: "PATH",
    kinds.Number: "NUMBER",
    kinds.FileDescriptor: "FD",
}
_VALUE_NAMES = {
    "veth_pairs": "IN=OUT",
    "inherit_fds": "fd[N]:KEY",
    "join_ns": "NS:FILE",
    "external": "KEY",
    "ext_mounts": "KEY:VALUE",
    "auto_ext_mnt": "auto",
    "cg_roots": "[CTRL:]/PATH",
    "enable_fs": "NAME",
    "log_file": "NAME",
    "unix_sks": "INODE",
}


def _help(rows: Sequence[Row]) -> str:
    from .field_docs import first_sentence  # runs do without

    row = next((row for row in rows if row.name not in OLD_FORMS), rows[0])
    text = in_flags(first_sentence(row.name)) or f"CriuOpts.{row.name}"
    more = []
    if isinstance(row.kind, kinds.ListOf):
        more.append("may be repeated")
    if row.default is not None and row.name not in ("status_fd",):
        more.append(f"default: {row.default}")
    if release(row.since) > release(OLDEST):
        more.append(f"since CRIU {row.since}")
    return text + (f" [{'; '.join(more)}]" if more else "")


def field_options(
    verb: int,
    without: Collection[str] = (),
    also: Collection[str] = (),
    only: Collection[str] | None = None,
) -> list[click.Parameter]:
    """The options that affect a verb, in the order of the table.

    ``without`` are fields to leave out, ``also`` fields to add, ``only`` the flags to choose from.
    """
    made: dict[str, click.Parameter] = {}
    for row in TABLE:
        if row.name in without or (only is not None and row.flag not in only):
            continue
        if row.name == "page_server" and row.on & verb:
            made |= {each.opts[0]: each for each in _server_options(verb)}
        if row.flag in ROWS and row.flag not in made:
            rows = [r for r in ROWS[row.flag] if r.on & verb or r.name in also]
            if rows:
                made[row.flag] = FieldOption(row.flag, rows)
    return list(made.values())


def _server_options(verb: int) -> Iterator[click.Option]:
    serves = verb == VERB_MASK[Verb.PAGE_SERVER]
    role = "to listen on" if serves else "of the page server"
    if not serves:
        way = "Take memory pages from" if verb == On.LAZY_PAGES else "Send memory pages to"
        help = f"{way} the page server at --address and --port"
        yield ServerOption(["--page-server"], is_flag=True, default=None, help=help)
    yield ServerOption(["--address"], metavar="HOST", help=f"Address {role}")
    yield ServerOption(["--port"], metavar="NUMBER", help=f"Port {role}")
    yield ServerOption(["--ps-socket"], metavar="FD", help="Connected socket to use instead")
    yield ServerOption(
        [CLEAR_TEXT],
        is_flag=True,
        default=None,
        help="Accept an address other than loopback without --tls: anyone on the network path can "
        "read and change the memory",
    )


class ServerOption(click.Option):
    """One of the options that together set ``CriuOpts.page_server``."""

    often = True

    def words(self, value: Any) -> Iterator[tuple[str, str | None]]:
        """The option and its value, as for :meth:`FieldOption.words`."""
        yield self.opts[0], (None if value is True else value)


def normalized(words: Sequence[str], valued: Collection[str]) -> list[str]:
    """The words for click, with :data:`BARE` for each optional value that was omitted.

    CRIU accepts such a value only if it is joined to its option; click would take the next word.
    ``valued``: other options of the command with a value.
    """
    result: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word == "--":
            return [*result, word, *waiting]
        takes = _takes_after(word, valued)
        if takes is Takes.PERHAPS:
            word += f"={BARE}" if word.startswith("--") else BARE
        result.append(word)
        if takes is Takes.VALUE:
            result += itertools.islice(waiting, 1)
    return result


def _takes_after(word: str, valued: Collection[str]) -> Takes:
    """Whether the option of a word, or the last one of joined letters, has its value behind it."""
    names = [f"-{each}" for each in word[1:]] if re.fullmatch(r"-[A-Za-z]+", word) else [word]
    reader = FlagParser()
    for place, name in enumerate(names, 1):
        flag = _FLAGS.get(name)
        takes = reader.takes(flag) if flag else Takes.NOTHING
        if name in valued or name in SERVER:
            takes = Takes.VALUE
        if takes is not Takes.NOTHING:
            return takes if place == len(names) else Takes.NOTHING
    return Takes.NOTHING


def named_flags(words: Sequence[str], others: Collection[str]) -> set[str] | None:
    """The flags of CRIU among :func:`normalized` words, and values that look like flags.

    None if an option is neither CRIU's nor one of ``others``: a help option, an unknown one, or
    letters that are joined to a value.
    """
    flags: set[str] = set()
    for word in words:
        if word == "--":
            break
        name = word.partition("=")[0]
        if name in others or not name.startswith("-") or name == "-":
            continue
        flag = _FLAGS.get(name)
        if flag is None:
            return None
        flags.add(flag)
    return flags


def read(
    ctx: click.Context,
    verb: Verb,
    *,
    config: str | None,
    command: Sequence[str] = (),
    also: Collection[str] = (),
) -> CriuOpts:
    """The options of a command: those of its file, replaced by those of its command line."""
    reader = FlagParser()
    serves = verb is Verb.PAGE_SERVER
    if serves:
        reader.take("--page-server")
    more: dict[str, Any] = {}
    """Options of the page server that the criu program does not have."""
    for flag, value in _given(ctx):
        if flag == CLEAR_TEXT:
            more["clear_text"] = True
        elif serves and (flag, value) == ("--port", "0"):
            more["port"] = 0
        else:
            reader.take(flag, value)
    if command and verb is Verb.RESTORE:
        reader.take("--exec-cmd")
    reader.finish(command)
    if more:
        server = reader.fields.setdefault("page_server", {})
        if not (server or serves):
            reader.problems.append(Problem(CLEAR_TEXT, None, "requires --page-server"))
        server |= more
    filed = {} if config is None else read_file(config, verb, also)
    if reader.problems:
        raise OptionError(reader.problems)
    return CriuOpts.from_dict({**filed, **reader.fields})


def _given(ctx: click.Context) -> Iterator[tuple[str, str | None]]:
    """The options of CRIU that the command line has, as CRIU's long options and their values."""
    for param in ctx.command.get_params(ctx):
        if isinstance(param, FieldOption | ServerOption) and param.name is not None:
            source = ctx.get_parameter_source(param.name)
            if source is click.core.ParameterSource.COMMANDLINE:
                yield from param.words(ctx.params[param.name])


def read_file(path: str, verb: Verb, also: Collection[str] = ()) -> dict[str, Any]:
    """The fields that a TOML file sets for a verb.

    Fields at the top of the file apply to every verb that they affect; those in a table with the
    name of a verb apply to that verb only.
    """
    import tomllib  # few command lines have such a file

    try:
        with open(path, encoding="utf-8") as file:
            values = tomllib.loads(file.read())
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        rule = f"{error}; a TOML table of options is accepted (CRIU's own files: {CONFIG})"
        raise OptionError([Problem("--config", path, rule)]) from None
    verbs = {str(each) for each in VERB_MASK}
    common = {name: value for name, value in values.items() if name not in verbs}
    own = values.get(str(verb), {})
    if not isinstance(own, Mapping):
        raise OptionError([Problem(f"--config [{verb}]", own, "a table of options is accepted")])
    mask = VERB_MASK[verb]
    useful = CriuOpts.from_dict(common).items()
    return {
        **{row.name: value for row, value in useful if row.on & mask or row.name in also},
        **own,
    }
