"""Converts options to and from CRIU's configuration files.

A file has one option in each line, as on the command line but without its dashes. CRIU's parser
has these special cases (3.17 to 4.3), which this module follows:

* in ``name=value`` without a blank, ``#`` is part of the value
* ``name value`` and ``name "value"`` end at a ``#``, even within the quotes
* a quoted value can have blanks only near its beginning
* an option with an optional value needs ``=``: in ``verbosity 4`` the 4 is ignored

A value that CRIU would read differently is refused.
"""

from __future__ import annotations

import os

from ..errors import OptionError, Problem
from .fields import Fields
from .flag_values import Takes
from .flags import FlagParser, Word, to_flags

SPACE = " \t\n\v\f\r"
"""White space for CRIU."""

NOT_IN_FILES = {
    "exec_cmd": "a file cannot have the command",
    "config_file": "CRIU does not read a file that another one names",
    "network_lock": "in the config_file of a request it crashes CRIU before 4.2.1; set the field",
}
"""Fields with a flag that a configuration file must not have."""


# ---- from options to text ----


def to_config(opts: Fields) -> str:
    """See ``CriuOpts.to_config``."""
    words, problems = to_flags(opts, NOT_IN_FILES)
    lines = []
    for word in words:
        line = _line(word)
        if line is None:
            rule = "a configuration file cannot have this value: CRIU would misread it"
            problems.append(Problem(word.field, word.value, rule))
        else:
            lines.append(line + "\n")
    if problems:
        raise OptionError(problems)
    return "".join(lines)


def _line(word: Word) -> str | None:
    """A line that CRIU reads as this flag and value; None if there is none."""
    name = word.flag.removeprefix("--")
    if word.value is None:
        return name
    joined = f"{name}={word.value}"
    if _means(joined, [f"{word.flag}={word.value}"]):
        return joined
    quoted = word.value.replace('"', '\\"')
    for line in (f"{name} {word.value}", f'{name} "{quoted}"'):
        if FlagParser().takes(word.flag) is Takes.VALUE and _means(line, [word.flag, word.value]):
            return line
    return None


def _means(line: str, words: list[str]) -> bool:
    try:
        return statement(line) == words
    except ValueError:
        return False


# ---- from text to options ----


def read_config(text: str, *, lazy: bool = False) -> FlagParser:
    """Parse a file, as for ``CriuOpts.from_config``; ``lazy``: its request has lazy pages."""
    if not isinstance(text, str):
        raise OptionError([Problem("text", text, "a str is accepted, as of os.fsdecode()")])
    reader = FlagParser()
    for number, line in enumerate(text.split("\n"), 1):
        try:
            words = statement(line)
        except ValueError as problem:
            reader.problems.append(Problem(f"line {number}", line, str(problem)))
            reader.refused.add(f"line {number}")
            continue
        _take(reader, words)
    if reader.pid is not None:
        reader.problems.append(Problem("--tree", reader.pid, "is no option: give it to the verb"))
    if reader.prints_version:
        reader.problems.append(Problem("--version", None, "use version() instead"))
        reader.refused.add("--version")
    if reader.sibling:
        reader.problems.append(Problem("--restore-sibling", None, "use restore_child() instead"))
        reader.refused.add("--restore-sibling")
    reader.finish(lazy=lazy)
    return reader


def _take(reader: FlagParser, words: list[str]) -> None:
    if not words:
        return
    flag, given, value = words[0].partition("=")
    takes = reader.takes(flag)
    ignored = words[1:]
    if given:
        reader.take(flag, value)
    elif takes is Takes.VALUE:
        reader.take(flag, *ignored)
        ignored = []
    else:
        reader.take(flag)
    for word in filter(None, ignored):
        cure = f"; write {flag[2:]}={word}" if takes is Takes.PERHAPS and not given else ""
        reader.problems.append(Problem(flag, word, f"CRIU ignores this word{cure}"))


# ---- one line, as CRIU reads it ----


def statement(line: str) -> list[str]:
    """The equivalent arguments of a command line; ``ValueError`` if CRIU refuses the line."""
    # CRIU counts bytes: in latin-1 each byte is a character.
    in_bytes = os.fsencode(line).decode("latin-1")
    return [os.fsdecode(word.encode("latin-1")) for word in _statement(in_bytes)]


def _statement(line: str) -> list[str]:
    line = line.lstrip(SPACE).partition("\n")[0]
    if not line or line.startswith("#"):
        return []
    blank = " " if " " in line else "\t"
    name, result, rest = line.partition(blank)
    if not result:
        return ["--" + line]
    start = len(name) + 1 + len(rest) - len(rest.lstrip(SPACE))
    rest = rest.lstrip(SPACE)
    if rest.startswith("#"):
        return ["--" + name]
    if rest.startswith('""'):
        return ["--" + name, ""]
    if rest.startswith('"'):
        # From here on CRIU counts from the start of the line, not of the value.
        value, checked = _quoted(rest), start + 2
    else:
        value, checked = rest, max(rest.find(" "), 0)
    escapes = value.count('\\"')
    if escapes:
        value = value.replace('\\"', '"')
        checked += escapes + 1
    # A comment is cut off, but CRIU's next check may read the part after the cut.
    value, _, cut = value.partition("#")
    tail = value[checked:] if checked <= len(value) else cut[checked - len(value) - 1 :]
    if " " in tail and tail[:-1].strip(SPACE):
        raise ValueError("CRIU refuses a value with more words than this")
    return ["--" + name, value[:checked] + value[checked:].partition(" ")[0]]


def _quoted(rest: str) -> str:
    """The value between quotes."""
    end = _closing(rest)
    tail = rest[end + 1 :]
    if " " in tail:
        before_comment = tail[:-1].partition("#")[0]
        if before_comment.strip(SPACE):
            raise ValueError("CRIU refuses words behind the closing quote")
    return rest[1:end]


def _closing(rest: str) -> int:
    # CRIU skips the character after the opening quote.
    index = rest.find('"', 2)
    while index >= 0:
        if rest[index - 1] != "\\":
            return index
        index = rest.find('"', index + 1)
    raise ValueError("CRIU refuses a quote that is not closed")
