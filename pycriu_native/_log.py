"""CRIU's log: which lines are errors, and what they come down to.

The knowledge is in ``failures.json``: patterns of CRIU's messages with cause, cure and the
options that help. It is read on the first failure, not before.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from . import errors
from .enums import Verb
from .errors import CriuError, Diagnosis

LARGEST_EXCERPT = 256 * 1024
"""Bytes read from the end of a log: a debug log of a large tree can be gigabytes."""

_ERROR = re.compile(r"Error \(|^Error|BUG at |Can't |RPC error|No pagemap-")

_KINDS: dict[str, type[CriuError]] = {
    "not-root-caps": errors.PermissionDeniedError,
    "nonroot-needs-unprivileged": errors.PermissionDeniedError,
    "vdso-kernel-too-new": errors.ProgramError,
    "kerndat": errors.ProgramError,
    "pid-missing": errors.NoSuchProcessError,
    "zombie-root": errors.NoSuchProcessError,
    "pid-in-use": errors.PidInUseError,
    "images-dir": errors.ImagesError,
    "img-magic": errors.ImagesError,
    "images-read-only": errors.ImagesError,
    "images-full": errors.ImagesError,
    "image-missing": errors.ImagesError,
    "pagemap-missing": errors.ImagesError,
    "map-files-eperm": errors.PermissionDeniedError,
    "ptrace-refused": errors.PermissionDeniedError,
    "rlimit-other-user": errors.PermissionDeniedError,
    "last-pid": errors.PermissionDeniedError,
    "tcp-repair": errors.PermissionDeniedError,
}
"""Failures that have an error class of their own, by their id in ``failures.json``."""


@dataclass(frozen=True, slots=True)
class LogMark:
    """What a log looked like before a call: only one that the call has written speaks of it."""

    directory: int
    name: str
    before: tuple[int, int, int] | None

    @classmethod
    def take(cls, directory: int, name: str) -> LogMark:
        """Remember the log ``name`` in an open directory, or that there is none."""
        return cls(directory, name, _identity(directory, name))

    def written(self) -> bool:
        """Whether the log is new or changed since."""
        now = _identity(self.directory, self.name)
        return now is not None and now != self.before

    def text(self) -> str:
        """The end of the log if the call has written it, else nothing."""
        if not self.written():
            return ""
        try:
            fd = os.open(
                self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.directory
            )
        except OSError:
            return ""
        with open(fd, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - LARGEST_EXCERPT))
            return log.read(LARGEST_EXCERPT).decode(errors="replace")


def _identity(directory: int, name: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size


def error_lines(text: str) -> list[str]:
    """The lines of a log that speak of errors, without those that successful runs print too."""
    lines = [line.strip() for line in text.splitlines() if _ERROR.search(line)]
    return [line for line in lines if not any(f.pattern.search(line) for f in _benign())]


@dataclass(frozen=True, slots=True)
class Failure:
    """One entry of ``failures.json``."""

    id: str
    phase: str
    pattern: re.Pattern[str]
    cause: str = ""
    cure: str = ""
    options: Sequence[str] = ()
    benign: bool = False


@functools.cache
def failures() -> tuple[Failure, ...]:
    """All that is known of CRIU's failures."""
    data = json.loads(resources.files(__package__).joinpath("failures.json").read_text("utf-8"))
    return tuple(Failure(**{**entry, "pattern": re.compile(entry["pattern"])}) for entry in data)


@functools.cache
def _benign() -> tuple[Failure, ...]:
    return tuple(failure for failure in failures() if failure.benign)


def _matching(lines: Iterable[str], verb: Verb) -> Iterable[Failure]:
    for line in lines:
        for failure in failures():
            if not failure.benign and _belongs(failure, verb) and failure.pattern.search(line):
                yield failure


def _belongs(failure: Failure, verb: Verb) -> bool:
    restoring = verb is Verb.RESTORE
    return failure.phase == "any" or restoring == (failure.phase == "restore")


def diagnose(lines: Sequence[str], verb: Verb, errno: int = 0) -> Diagnosis:
    """The likely cause of a failure: the first line that is known wins over errno.

    CRIU prints the cause first and its consequences after it; lines that only sum up are
    entries without a class, cure or options of their own, and come last in the choice.
    """
    by_errno = errors.BY_ERRNO.get(errno, CriuError)
    known = list(_matching(lines, verb))
    if not known:
        return Diagnosis(by_errno)
    best = next((f for f in known if f.options or f.id in _KINDS), known[0])
    return Diagnosis(_KINDS.get(best.id, by_errno), best.cause, best.cure, tuple(best.options))
