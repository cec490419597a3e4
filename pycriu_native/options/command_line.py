"""The command line of the ``criu`` program that does the same, and back.

Read as ``getopt_long`` reads it: options may stand before and behind the command, short ones
may be joined, and ``--`` ends them. Not read: abbreviated long options, because what they mean
changes with the release. Facts: CRIU's ``criu/config.c`` and ``criu/crtools.c``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._support.frozen_dataclass import replace
from ..enums import Verb
from ..errors import OptionError, Problem
from .applicability import foreign_options
from .fields import Fields
from .flag_values import Takes
from .flags import SHORT, FlagParser, Opts, Word, to_flags

PROGRAM = "criu"
COMMANDS = {str(verb): verb for verb in (Verb.DUMP, Verb.PRE_DUMP, Verb.RESTORE)}
LETTERS = {
    **SHORT,
    "d": "--restore-detached",
    "S": "--restore-sibling",
    "h": "--help",
    "V": "--version",
    "L": "--libdir",
}
OTHER_COMMANDS = frozenset(
    ("check", "cpuinfo", "dedup", "exec", "lazy-pages", "page-server", "service", "show", "swrk")
)
READ_FIRST = frozenset(("-h", "--help", "--config", "--no-default-config"))
"""Words that criu looks for anywhere in its command line, before it reads it properly."""


# ---- from options to words ----


def to_argv(opts: Fields, verb: Verb | str, pid: int | None) -> list[str]:
    """See ``CriuOpts.to_argv``."""
    words, problems = command(opts, chosen(opts, verb), pid)
    if problems:
        raise OptionError(problems, verb=str(verb), pid=pid)
    return words


def chosen(opts: Fields, verb: Verb | str) -> Verb:
    """The verb that is meant: ``dump`` with ``pre_dump`` set is a pre-dump."""
    result = COMMANDS.get(str(verb))
    if result is None:
        raise OptionError([Problem("verb", verb, f"one of {', '.join(COMMANDS)} is accepted")])
    return Verb.PRE_DUMP if result is Verb.DUMP and opts.pre_dump else result


def command(opts: Fields, verb: Verb, pid: int | None) -> tuple[list[str], list[Problem]]:
    """The command line for all that it can say, and what it cannot."""
    problems = list(foreign_options(opts, verb))
    response, unsaid = to_flags(replace(opts.only_for(verb), pre_dump=None, exec_cmd=None))
    problems += unsaid
    words = [PROGRAM, str(verb), *_tree(verb, pid, problems)]
    for word in response:
        words.append(word.flag if word.value is None else f"{word.flag}={word.value}")
        problems += _misread(word)
    if verb is Verb.RESTORE:
        if opts.exec_cmd is None:
            words.append("--restore-detached")
        else:
            arguments = [str(word) for word in opts.exec_cmd]
            words += ["--exec-cmd", "--", *arguments]
            problems += (p for a in arguments for p in _misread(Word("--", a, "exec_cmd")))
    return words, problems


def _tree(verb: Verb, pid: int | None, problems: list[Problem]) -> list[str]:
    if verb is Verb.RESTORE:
        if pid is not None:
            problems.append(Problem("pid", pid, "a restore takes its pids from the images"))
        return []
    if pid is None:
        problems.append(
            Problem("pid", None, "a criu of the command line cannot be asked by itself")
        )
        return []
    return [f"--tree={pid}"]


def _misread(word: Word) -> Iterator[Problem]:
    value = word.value or ""
    alone = word.flag == "--"
    if (alone and value in READ_FIRST) or (word.flag != "--config" and "--config=" in value):
        yield Problem(word.field, value, "criu would take this word for an option of its own")


# ---- from words to options ----


def from_argv(cls: type[Opts], words: Sequence[str]) -> tuple[Verb, int | None, Opts]:
    """See ``CriuOpts.from_argv``."""
    words = list(words)
    if words and not words[0].startswith("-") and words[0] not in OTHER_COMMANDS | set(COMMANDS):
        del words[0]
    reader = FlagParser()
    remaining = _read(words, reader)
    name, rest = (remaining[0], remaining[1:]) if remaining else (None, [])
    verb = COMMANDS.get(str(name))
    if verb is None:
        rule = f"one of the commands {', '.join(COMMANDS)} is accepted"
        reader.problems.insert(0, Problem("verb", name, rule))
    elif verb is not Verb.RESTORE and reader.pid is None:
        reader.problems.append(Problem("--tree", None, f"{verb} needs the process"))
    if not reader.executes:
        reader.problems += [Problem("words", word, "is one word too many") for word in rest]
    reader.finish(rest)
    if verb is Verb.PRE_DUMP:
        reader.fields["pre_dump"] = True
    opts = reader.make(cls)
    assert verb is not None
    return verb, None if verb is Verb.RESTORE else reader.pid, opts


def _read(words: Sequence[str], reader: FlagParser) -> list[str]:
    """Read the options; what is left are the command and what it is to run."""
    remaining: list[str] = []
    following = iter(words)
    for word in following:
        if word == "--":
            remaining += following
        elif word.startswith("--"):
            flag, given, value = word.partition("=")
            if given:
                reader.take(flag, value)
            else:
                reader.take(flag, _next(following, reader.takes(flag)))
        elif word.startswith("-") and word != "-":
            _read_letters(word[1:], following, reader)
        else:
            remaining.append(word)
    return remaining


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
