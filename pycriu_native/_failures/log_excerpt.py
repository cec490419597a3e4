"""Finds the errors in CRIU's log, and their cause.

``known_failures.json`` has patterns of CRIU's messages with cause, cure and the options that help.
It is read on the first failure.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence

from .. import errors
from .._support.frozen_dataclass import dataclass
from .._support.light_typing import TYPE_CHECKING, Any
from .._support.no_fork import no_fork
from ..enums import Verb
from ..errors import CriuError, Diagnosis

if TYPE_CHECKING:
    import re

LONGEST_LINE = 2048
"""Characters of a line that are searched: CRIU's lines, of 8 KiB at most, begin with the cause."""

_ERROR = r"Error \(|^Error|BUG at |RPC error"


def _lines(text: str) -> list[str]:
    """The lines, cut to bound the search: other users may be able to write the file."""
    return [line[:LONGEST_LINE] for line in text.splitlines()]


def error_lines(text: str, pid: int | None = None) -> list[str]:
    """The lines of a log that report errors, without those that successful runs print too.

    Includes causes that CRIU logs as a warning or as information (``Failure.quiet``). Such a line
    that names a process counts only for the call's own ``pid``: zombie children cause it too.
    """
    import re

    quiet = [failure.pattern for failure in failures() if failure.quiet]
    return [
        line.strip()
        for line in _lines(text)
        if (
            re.search(_ERROR, line)
            or any(_is_about(pattern.search(line), pid) for pattern in quiet)
        )
        and not is_benign(line)
    ]


def _is_about(match: re.Match[str] | None, pid: int | None) -> bool:
    if match is None:
        return False
    named = match.groupdict().get("pid")
    return named is None or int(named) == pid


def stderr_lines(text: str) -> list[str]:
    """The errors in a worker's standard error; if there are none, all of its lines.

    The loader, the C library and CRIU's parser of options do not write to CRIU's log.
    """
    return error_lines(text) or [
        line.strip() for line in _lines(text) if line.strip() and not is_benign(line)
    ]


@dataclass(frozen=True, slots=True)
class Failure:
    """One entry of ``known_failures.json``."""

    id: str
    phase: str
    """``dump``, ``restore``, ``any``, or another name, which counts as ``dump``."""
    pattern: re.Pattern[str]
    """CRIU's message."""
    cause: str = ""
    cure: str = ""
    options: Sequence[str] = ()
    """Fields of ``CriuOpts`` that help, best first."""
    error: type[CriuError] | None = None
    """The class of the exception, if there is a more precise one than ``CriuError``."""
    consequence: bool = False
    """Whether CRIU prints this also after a line with a more precise cause."""
    quiet: bool = False
    """The cause of an error that CRIU logs as a warning or as information. A group ``pid`` in the
    pattern is the process that the line is about."""
    benign: bool = False
    """Whether successful calls print this too."""

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> Failure:
        """Convert an entry of the file."""
        with no_fork:
            import re  # slow to import; a call that succeeds does not need it

        error = entry.get("error") and getattr(errors, entry["error"])
        return cls(**{**entry, "pattern": re.compile(entry["pattern"]), "error": error})


@functools.cache
def failures() -> tuple[Failure, ...]:
    """The entries of the file; none if it can no longer be read."""
    with no_fork:
        import json  # slow to import; a call that succeeds does not need it

    # A plain path needs no further imports: the caller may have changed its root or its user.
    path = os.path.join(os.path.dirname(__file__), "known_failures.json")
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError:  # must not hide the failure of the call
        return ()
    return tuple(Failure.parse(entry) for entry in data)


def known(name: str) -> Failure:
    """An entry of ``known_failures.json``."""
    return next(failure for failure in failures() if failure.id == name)


def is_benign(line: str) -> bool:
    """Whether runs that succeed print this line too."""
    return any(failure.benign and failure.pattern.search(line) for failure in failures())


def _matching(lines: Iterable[str], verb: Verb) -> Iterable[tuple[Failure, str]]:
    restoring = verb is Verb.RESTORE
    for line in lines:
        for failure in failures():
            belongs = failure.phase == "any" or restoring == (failure.phase == "restore")
            if belongs and not failure.benign and failure.pattern.search(line):
                yield failure, line


def diagnose(lines: Sequence[str], verb: Verb, errno: int = 0) -> Diagnosis:
    """The likely cause of a failure: the first line with an entry, else errno.

    CRIU prints a cause before its consequences. An entry that can be a consequence is used only if
    no other entry matches.
    """
    by_errno = errors.BY_ERRNO.get(errno, CriuError)
    known = list(_matching(lines, verb))
    if not known:
        return Diagnosis(by_errno)
    best, line = next((result for result in known if not result[0].consequence), known[0])
    return Diagnosis(best.error or by_errno, best.cause, best.cure, tuple(best.options), line)
