"""Converts options to and from a command line of the ``criu`` program.

It is parsed as by ``getopt_long``: options can precede and follow the command, short ones can be
joined, ``--`` ends them, and long ones can be abbreviated if no other option of any release begins
with the abbreviation. Sources: CRIU's ``criu/config.c`` and ``criu/crtools.c``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .._support.frozen_dataclass import replace
from ..enums import Verb
from ..errors import OptionError, Problem
from .fields import Fields, foreign_options, verb_of
from .flag_values import Takes
from .flags import KNOWN, SHORT, FlagParser, Opts, Word, to_flags
from .table import BY_FIELD, VERB_MASK
from .values import PageServer

PROGRAM = "criu"
SERVERS = (Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD)
COMMANDS = {
    Verb.DUMP: ("dump",),
    Verb.PRE_DUMP: ("pre-dump",),
    Verb.RESTORE: ("restore",),
    Verb.RESTORE_CHILD: ("restore",),
    Verb.PAGE_SERVER: ("page-server",),
    Verb.PAGE_SERVER_CHILD: ("page-server",),
    Verb.LAZY_PAGES: ("lazy-pages",),
    Verb.DEDUP: ("dedup",),
    Verb.CHECK: ("check",),
    Verb.CPUINFO_DUMP: ("cpuinfo", "dump"),
    Verb.CPUINFO_CHECK: ("cpuinfo", "check"),
}
"""The commands of the program, by verb."""

LAST = {
    Verb.RESTORE: "--restore-detached",
    Verb.RESTORE_CHILD: "--restore-sibling",
    Verb.PAGE_SERVER: "--daemon",
}
"""Flags that the verb implies."""

LETTERS = {
    **SHORT,
    "d": "--restore-detached",
    "S": "--restore-sibling",
    "h": "--help",
    "V": "--version",
}
OTHER_COMMANDS = {
    "service": "Service(path) reaches one that runs already",
    "swrk": "Worker() starts one for each call",
    "exec": "CRIU has removed it",
    "show": "CRIU has removed it: images.decode() shows images",
}
"""Commands without a verb, and the reason or replacement."""

CURRENT_DIRECTORY = "."
"""The images directory of a command line that names none."""
STANDARD_OUTPUT = "-"
"""The log file that stands for standard output."""
REFUSED_ELSEWHERE = ("inherit_fds", "mntns_compat_mode", "lazy_pages", "stream")
"""Options that criu refuses, instead of ignoring them, with some other commands."""

READ_FIRST = frozenset(("-h", "--help", "--config", "--no-default-config"))
"""Arguments that criu searches anywhere in its command line, before it parses it."""


# ---- from options to arguments ----


def to_argv(opts: Fields, verb: Verb | str, pid: int | None) -> list[str]:
    """See ``CriuOpts.to_argv``."""
    words, problems = command(opts, chosen(opts, verb), pid)
    if problems:
        raise OptionError(problems, verb=str(verb), pid=pid)
    return words


def chosen(opts: Fields, verb: Verb | str) -> Verb:
    """The verb; ``dump`` with ``pre_dump`` set is a pre-dump."""
    result = verb_of(verb)
    return Verb.PRE_DUMP if result is Verb.DUMP and opts.pre_dump else result


def command(opts: Fields, verb: Verb, pid: int | None) -> tuple[list[str], list[Problem]]:
    """The command line for all that it can express, and a problem for each other option."""
    problems = list(foreign_options(opts, verb))
    flags, refused = to_flags(_expressible(opts.only_for(verb), verb))
    problems += refused
    if verb in SERVERS and not any(word.flag in ("--address", "--ps-socket") for word in flags):
        rule = "an address or a descriptor is required: criu would listen on all addresses"
        problems.append(Problem("page_server", opts.page_server, rule))
    words = [PROGRAM, *COMMANDS[verb], *_tree(verb, pid, problems)]
    for word in flags:
        if verb in SERVERS and word.flag == "--page-server":
            continue  # the command implies it
        words.append(word.flag if word.value is None else f"{word.flag}={word.value}")
        problems += _misread(word)
    if opts.exec_cmd is not None and verb is Verb.RESTORE:
        arguments = [str(word) for word in opts.exec_cmd]
        words += ["--exec-cmd", "--", *arguments]
        problems += (p for a in arguments for p in _misread(Word("--", a, "exec_cmd")))
    elif verb in LAST:
        if opts.exec_cmd is not None and verb is Verb.RESTORE_CHILD:
            rule = "criu takes no --exec-cmd with --restore-sibling"
            problems.append(Problem("exec_cmd", opts.exec_cmd, rule))
        words += ["--restore-detached"] if verb is Verb.RESTORE_CHILD else []
        words.append(LAST[verb])
    elif verb is Verb.LAZY_PAGES and opts.pidfile is not None:
        words.append("--daemon")  # without it criu writes no pid
    return words, problems


def _expressible(opts: Fields, verb: Verb) -> Fields:
    """The options without those that the command and its last arguments express."""
    server = opts.page_server
    if verb in SERVERS and isinstance(server, PageServer) and server.address and not server.port:
        server = replace(server, port=None)  # CRIU chooses one unless a port is given
    return replace(opts, pre_dump=None, exec_cmd=None, page_server=server)


def _tree(verb: Verb, pid: int | None, problems: list[Problem]) -> list[str]:
    if verb not in (Verb.DUMP, Verb.PRE_DUMP):
        if pid is not None:
            problems.append(Problem("pid", pid, f"{verb} takes no pid"))
        return []
    if pid is None:
        problems.append(
            Problem("pid", None, "a pid is required: the criu program cannot dump its caller")
        )
        return []
    return [f"--tree={pid}"]


def _misread(word: Word) -> Iterator[Problem]:
    value = word.value or ""
    alone = word.flag == "--"
    if (alone and value in READ_FIRST) or (word.flag != "--config" and "--config=" in value):
        yield Problem(word.field, value, "criu would read this argument as an option")


# ---- from arguments to options ----


def from_argv(cls: type[Opts], words: Sequence[str]) -> tuple[Verb, int | None, Opts]:
    """See ``CriuOpts.from_argv``."""
    is_list = isinstance(words, Iterable) and not isinstance(words, str)
    listed = list(words) if is_list else []
    if not is_list or not all(isinstance(word, str) for word in listed):
        rule = "a sequence of words is accepted, such as that of shlex.split()"
        raise OptionError([Problem("words", words, rule)])
    if listed and not listed[0].startswith("-") and not _is_command(listed[0]):
        del listed[0]
    reader = FlagParser()
    remaining = _read(listed, reader)
    if reader.prints_version:
        return Verb.VERSION, None, cls()
    name = remaining[:2] if remaining[:1] == ["cpuinfo"] else remaining[:1]
    rest = remaining[len(name) :]
    verb = _verb(tuple(name), reader)
    if verb in (Verb.DUMP, Verb.PRE_DUMP) and reader.pid is None:
        reader.problems.append(Problem("--tree", None, f"{verb} needs the process"))
    if verb is Verb.RESTORE_CHILD and not reader.detached:
        rule = "criu refuses it without --restore-detached"
        reader.problems.append(Problem("--restore-sibling", None, rule))
    if not reader.executes:
        reader.problems += [Problem("words", word, "is an argument too many") for word in rest]
    elif verb is not None and verb is not Verb.RESTORE:
        reader.problems.append(Problem("--exec-cmd", None, "belongs to restore"))
    pages = verb is None or bool(BY_FIELD["page_server"].on & VERB_MASK[verb])
    reader.finish(rest, serves=verb in SERVERS, pages=pages)
    if verb is Verb.PRE_DUMP:
        reader.fields["pre_dump"] = True
    if verb is Verb.LAZY_PAGES and not reader.detached:
        reader.fields.pop("pidfile", None)
    if verb is not Verb.CHECK:
        reader.fields.setdefault("images_directory", CURRENT_DIRECTORY)
    if reader.fields.get("log_file") == STANDARD_OUTPUT:
        del reader.fields["log_file"]
        reader.fields["log_to_stderr"] = True
    opts = reader.make(cls)
    assert verb is not None
    # Without the options that criu ignores with this command, and only those.
    refused = {name: getattr(opts, name) for name in REFUSED_ELSEWHERE}
    opts = replace(opts.only_for(verb), **refused)
    return verb, reader.pid if verb in (Verb.DUMP, Verb.PRE_DUMP) else None, opts


def _is_command(word: str) -> bool:
    return word in OTHER_COMMANDS or any(word == command[0] for command in COMMANDS.values())


def _verb(name: tuple[str, ...], reader: FlagParser) -> Verb | None:
    """The verb of a command and of the options that choose between two verbs."""
    verb = {command: verb for verb, command in reversed(COMMANDS.items())}.get(name)
    if verb is None:
        rule = OTHER_COMMANDS.get(" ".join(name))
        known = ", ".join(dict.fromkeys(" ".join(command) for command in COMMANDS.values()))
        rule = f"is no verb: {rule}" if rule else f"one of the commands {known} is accepted"
        reader.problems.insert(0, Problem("verb", " ".join(name) or None, rule))
    elif verb is Verb.RESTORE and reader.sibling:
        verb = Verb.RESTORE_CHILD
    elif verb is Verb.PAGE_SERVER and not reader.detached:
        verb = Verb.PAGE_SERVER_CHILD
    return verb


def _read(words: Sequence[str], reader: FlagParser) -> list[str]:
    """Read the options; returns the other arguments."""
    remaining: list[str] = []
    following = iter(words)
    for word in following:
        if word == "--":
            remaining += following
        elif word.startswith("--"):
            flag, given, value = word.partition("=")
            flag = _unabbreviated(flag)
            if given:
                reader.take(flag, value)
            else:
                reader.take(flag, _next(following, reader.takes(flag)))
        elif word.startswith("-") and word != "-":
            _read_letters(word[1:], following, reader)
        else:
            remaining.append(word)
    return remaining


def _unabbreviated(flag: str) -> str:
    """The long option of an abbreviation; unchanged if it fits none, or several."""
    fitting = [flag] if flag in KNOWN else [each for each in KNOWN if each.startswith(flag)]
    return fitting[0] if len(fitting) == 1 else flag


def _read_letters(letters: str, following: Iterator[str], reader: FlagParser) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = LETTERS.get(letter)
        if flag is None:
            reader.problems.append(Problem("-" + letter, None, "is no option of criu"))
            return
        takes = reader.takes(flag)
        if takes is Takes.NOTHING:
            reader.take(flag)
        else:
            reader.take(flag, letters or _next(following, takes))
            return


def _next(following: Iterator[str], takes: Takes) -> str | None:
    return next(following, None) if takes is Takes.VALUE else None
