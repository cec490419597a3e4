"""What preflight says, as values: findings, the verdict, the size to expect."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..._support.kernel_text import encodable
from ...errors import CriuError, NoSuchProcessError
from ...options.criu_opts import CriuOpts

__all__ = [
    "Finding",
    "ImageSize",
    "Preflight",
    "PreflightError",
    "PreflightWarning",
    "Severity",
    "Verdict",
]


class Severity(StrEnum):
    """What a finding means for a dump."""

    STOPS = "stops"
    """The dump fails, and no option that can be set for you changes that."""
    NEEDS_OPTION = "needs option"
    """The dump fails without an option, which the finding names with its value."""
    NO_RESTORE = "no restore"
    """The dump works, and a restore on this machine by this caller fails."""
    LOST = "lost"
    """The dump works, and the restored process lacks this."""
    NOTE = "note"
    """The dump works; a restore has something to mind."""


class Verdict(StrEnum):
    """What a dump with the options as they were given would do."""

    WORKS = "works"
    """It succeeds."""
    NEEDS_OPTIONS = "needs options"
    """It fails, and succeeds with ``Preflight.opts``."""
    NO_RESTORE = "no restore"
    """It succeeds, with ``Preflight.opts``, and a restore on this machine by this caller fails."""
    FAILS = "fails"
    """It fails."""


_ORDER = list(Severity)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that matters to a dump."""

    id: str
    """What it is, in a word of this package that stays."""
    severity: Severity
    """What it means for the dump."""
    words: str
    """What was found, in plain words."""
    pid: int | None = None
    """The process that it is about; None: the tree as a whole, or this machine."""
    fd: int | None = None
    """The descriptor in that process."""
    path: str | None = None
    """The file, mount or device."""
    cure: str = ""
    """What helps, in plain words."""
    sets: tuple[tuple[str, Any], ...] = ()
    """Options that cure it: names of fields of ``CriuOpts`` and values for the dump."""
    failure: str | None = None
    """What CRIU's failure is called in ``known_failures.json``, which errors of a dump go by as
    well."""

    @property
    def subject(self) -> str:
        """The process, descriptor and path in one text; empty for the tree as a whole."""
        parts = [] if self.pid is None else [f"pid {self.pid}"]
        parts += [] if self.fd is None else [f"fd {self.fd}"]
        parts += [] if self.path is None else [self.path]
        return ", ".join(parts)

    def __str__(self) -> str:
        subject = f"{self.subject}: " if self.subject else ""
        cure = f"; {self.cure}" if self.cure else ""
        return encodable(f"{subject}{self.words}{cure}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``sets`` is a dict."""
        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "severity": str(self.severity),
            "sets": {name: plain(value) for name, value in self.sets},
        }


def plain(value: Any) -> Any:
    """A value of an option as JSON has it."""
    return [str(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSize:
    """Bytes that the images would take, by what is in them; an estimate.

    Of memory that processes got by fork and never changed, each holds a copy in the images.
    Compressed or deduplicated images are smaller.
    """

    memory: int = 0
    """Private memory, of all processes; swapped-out memory included."""
    shared_memory: int = 0
    """Memory that is shared and in no file, counted once."""
    deleted_files: int = 0
    """Files that are open or mapped but have no name, and are within ``ghost_limit``."""
    file_systems: int = 0
    """What lies in tmpfs mounts of the tree's own mount namespace, before it is compressed."""
    rest: int = 0
    """Everything else: about 8 KiB and some for each process, thread and descriptor."""

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON, with ``total``."""
        return {**dataclasses.asdict(self), "total": self.total}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """What would happen to a dump of a process tree, as far as can be seen without stopping it.

    A moment's picture: the processes run on. ``str()`` is for people to read.
    """

    pid: int
    """The root process."""
    pids: tuple[int, ...]
    """All processes of the tree."""
    findings: tuple[Finding, ...]
    """What was found, the worst first."""
    given: CriuOpts
    """The options that were asked about."""
    opts: CriuOpts
    """These, and all that the findings set."""
    size: ImageSize
    """The size to expect."""

    @property
    def verdict(self) -> Verdict:
        """What a dump with the options as they were given would do."""
        if self.stops:
            return Verdict.FAILS
        if self.no_restore:
            return Verdict.NO_RESTORE
        return Verdict.NEEDS_OPTIONS if self.needs else Verdict.WORKS

    @property
    def stops(self) -> tuple[Finding, ...]:
        """What makes the dump fail whatever options are set."""
        return self._of(Severity.STOPS)

    @property
    def needs(self) -> tuple[Finding, ...]:
        """What makes the dump fail unless an option is set."""
        return self._of(Severity.NEEDS_OPTION)

    @property
    def no_restore(self) -> tuple[Finding, ...]:
        """What makes a restore on this machine by this caller fail."""
        return self._of(Severity.NO_RESTORE)

    @property
    def lost(self) -> tuple[Finding, ...]:
        """What the restored processes will lack."""
        return self._of(Severity.LOST)

    def _of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(result for result in self.findings if result.severity is severity)

    def require(self) -> CriuOpts:
        """Return ``opts``, with which the process can be dumped.

        What they add to the options that were given keeps as much as can be kept.
        ``only_for("restore")`` makes the restore's options of them.

        What a restore will lack is told by a ``PreflightWarning``: a pipe to a process outside,
        for one. Raises ``PreflightError``, which lists every obstacle with its cure, also where a
        restore here would fail and ``leave_running`` is not set: the process would be lost; and
        ``NoSuchProcessError``.
        """
        for finding in self.stops:
            if finding.id in ("no-process", "zombie"):
                raise NoSuchProcessError(
                    f"process {self.pid} cannot be dumped: {finding}",
                    verb="dump",
                    pid=self.pid,
                    cause=finding.words,
                    cure=finding.cure,
                )
        if self.stops or (self.no_restore and not self.given.leave_running):
            raise PreflightError(self)
        for finding in (*self.no_restore, *self.lost):
            warnings.warn(f"process {self.pid}: {finding}", PreflightWarning, stacklevel=2)
        return self.opts

    def changes(self) -> dict[str, Any]:
        """The options that ``opts`` has beyond what was given."""
        before = {row.name: value for row, value in self.given.items()}
        return {
            row.name: value for row, value in self.opts.items() if before.get(row.name) != value
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "pid": self.pid,
            "pids": list(self.pids),
            "verdict": str(self.verdict),
            "options": {name: plain(value) for name, value in self.changes().items()},
            "findings": [result.to_dict() for result in self.findings],
            "size": self.size.to_dict(),
        }

    def __str__(self) -> str:
        from .text import rendered

        return rendered(self)


def ordered(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    """Each once, the worst first."""
    once = dict.fromkeys(findings)
    return tuple(sorted(once, key=lambda found: _ORDER.index(found.severity)))


class PreflightError(CriuError):
    """A dump or the restore after it cannot work, and no option changes that.

    The message has every obstacle and its cure.
    """

    def __init__(self, result: Preflight) -> None:
        self.findings = result.stops or result.no_restore
        """What makes it fail."""
        what = "dumped" if result.stops else "restored here after a dump"
        obstacles = "; ".join(f"({n}) {results}" for n, results in enumerate(self.findings, 1))
        super().__init__(
            f"process {result.pid} cannot be {what}: {obstacles}",
            verb="dump",
            pid=result.pid,
            cause="; ".join(results.words for results in self.findings),
            cure="; ".join(results.cure for results in self.findings if results.cure),
            options=[name for results in self.findings for name, _ in results.sets],
        )


class PreflightWarning(UserWarning):
    """``Preflight.require``: something will be missing after a restore, or a restore fails."""


Options = Mapping[str, Any]
