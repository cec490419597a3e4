"""CRIU's log: which lines are errors, and what they come down to.

The knowledge is in ``known_failures.json``: patterns of CRIU's messages with cause, cure and the
options that help. It is read on the first failure, not before.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence

from .. import errors
from .._support.frozen_dataclass import dataclass
from .._support.light_typing import TYPE_CHECKING, Any
from ..enums import Verb
from ..errors import CriuError, Diagnosis

if TYPE_CHECKING:
    import re

LONGEST_LINE = 2048
"""Characters of a line that are looked at: the cause stands at the beginning of CRIU's lines,
which have 8 KiB at most."""

_ERROR = r"Error \(|^Error|BUG at |RPC error"


def _lines(text: str) -> list[str]:
    """The lines, the longest cut: what stands in a file that others can write costs no minutes."""
    return [line[:LONGEST_LINE] for line in text.splitlines()]


def error_lines(text: str, pid: int | None = None) -> list[str]:
    """The lines of a log that speak of errors, without those that successful runs print too.

    Some causes CRIU calls a warning, or information (``Failure.quiet``): they are among them. One
    that names a process counts for the call's own ``pid`` only: of its children, zombies cause it.
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
    """What a worker's standard error says of a failure: its errors, else all that it says.

    The loader, the C library and the parser of options know nothing of CRIU's log.
    """
    return error_lines(text) or [
        line.strip() for line in _lines(text) if line.strip() and not is_benign(line)
    ]


@dataclass(frozen=True, slots=True)
class Failure:
    """One entry of ``known_failures.json``."""

    id: str
    phase: str
    """``dump``, ``restore``, ``any``, or a narrower word that counts as ``dump``."""
    pattern: re.Pattern[str]
    """What CRIU prints."""
    cause: str = ""
    cure: str = ""
    options: Sequence[str] = ()
    """Fields of ``CriuOpts`` that help, best first."""
    error: type[CriuError] | None = None
    """The class of the exception, where there is a more precise one than ``CriuError``."""
    consequence: bool = False
    """CRIU prints this also after a line that tells the cause more precisely."""
    quiet: bool = False
    """CRIU does not print this as an error, though it is the cause of one; a group ``pid`` in the
    pattern is the process that it is about."""
    benign: bool = False
    """Runs that succeed print this too."""

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> Failure:
        """An entry as the file has it."""
        import re  # a call that succeeds does without

        error = entry.get("error")
        return cls(
            **{
                **entry,
                "pattern": re.compile(entry["pattern"]),
                "error": None if error is None else getattr(errors, error),
            }
        )


@functools.cache
def failures() -> tuple[Failure, ...]:
    """All that is known of CRIU's failures; nothing, where the package cannot be read any more."""
    import json  # a call that succeeds does without

    # A plain path needs no further imports: the caller may have changed its root or its user.
    path = os.path.join(os.path.dirname(__file__), "known_failures.json")
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError:  # no reason to hide the failure that is to be explained
        return ()
    return tuple(Failure.parse(entry) for entry in data)


def known(name: str) -> Failure:
    """An entry of ``known_failures.json``."""
    return next(failure for failure in failures() if failure.id == name)


def is_benign(line: str) -> bool:
    """Whether runs that succeed print this line too."""
    return any(failure.benign and failure.pattern.search(line) for failure in failures())


def _matching(lines: Iterable[str], verb: Verb) -> Iterable[tuple[Failure, str]]:
    for line in lines:
        for failure in failures():
            if not failure.benign and _belongs(failure, verb) and failure.pattern.search(line):
                yield failure, line


def _belongs(failure: Failure, verb: Verb) -> bool:
    restoring = verb is Verb.RESTORE
    return failure.phase == "any" or restoring == (failure.phase == "restore")


def diagnose(lines: Sequence[str], verb: Verb, errno: int = 0) -> Diagnosis:
    """The likely cause of a failure: the first line that is known, else errno.

    CRIU prints the cause first and its consequences after it. What is known to be a
    consequence, of a cause that need not be known, comes last in the choice.
    """
    by_errno = errors.BY_ERRNO.get(errno, CriuError)
    known = list(_matching(lines, verb))
    if not known:
        return Diagnosis(by_errno)
    best, line = next((result for result in known if not result[0].consequence), known[0])
    return Diagnosis(best.error or by_errno, best.cause, best.cure, tuple(best.options), line)
