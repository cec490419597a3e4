"""The result of ``preflight``: findings, verdict and expected size of the images."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum

from ..._support.frozen_dataclass import dataclass
from ..._support.kernel_text import encodable
from ..._support.light_typing import Any
from ..._support.sizes import size_text
from ...errors import CriuError, NoSuchProcessError
from ...findings import Finding, Severity, lines, plain_options
from ...options.criu_opts import CriuOpts
from .restore_needs import RestoreNeed, filled


class Verdict(StrEnum):
    """Outcome of a dump with the options as given."""

    WORKS = "works"
    """It succeeds."""
    NEEDS_OPTIONS = "needs options"
    """It fails, and succeeds with ``Preflight.opts``."""
    NO_RESTORE = "no restore"
    """It succeeds, with ``Preflight.opts``, and a restore on this machine by this caller fails."""
    FAILS = "fails"
    """It fails."""


MOST_PIDS = 5
"""Number of processes that a message names for one kind of obstacle."""

HEADINGS: dict[str, str] = {
    Severity.STOPS: "stops the dump",
    Severity.NEEDS_OPTION: "needs an option",
    Severity.NO_RESTORE: "makes a restore here fail",
    Severity.LOST: "is lost",
    Severity.NOTE: "for information",
}
"""Heading of the findings of each severity."""
_SUMMARIES = {
    Verdict.WORKS: "can be dumped",
    Verdict.NEEDS_OPTIONS: "can be dumped with these options",
    Verdict.NO_RESTORE: "can be dumped, and cannot be restored here",
    Verdict.FAILS: "cannot be dumped",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSize:
    """Estimated size of the images in bytes, by content.

    Memory that processes share since fork counts once for each process, as in the images.
    Compressed or deduplicated images are smaller.
    """

    memory: int = 0
    """Private memory, of all processes; swapped-out memory included."""
    shared_memory: int = 0
    """Memory that is shared and in no file, counted once."""
    deleted_files: int = 0
    """Files that are open or mapped but have no name, and are within ``ghost_limit``."""
    queues: int = 0
    """Unread data in pipes, unix sockets and TCP connections."""
    file_systems: int = 0
    """Contents of tmpfs mounts of the tree's own mount namespace, before compression."""
    written_files: int = 0
    """Copies of the files that are open for writing, with ``files="rollback"``; without those that
    are reflinks or saved by their length."""
    rest: int = 0
    """Everything else: about 8 KiB and some for each process, thread and descriptor."""

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        import dataclasses

        return sum(getattr(self, field.name) for field in dataclasses.fields(self))

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON, with ``total``."""
        import dataclasses

        return {**dataclasses.asdict(self), "total": self.total}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """Expected outcome of a dump of a process tree, checked without stopping it.

    Valid for the moment of the check: the processes keep running. ``str()`` returns a text.
    """

    pid: int
    """The root process."""
    pids: tuple[int, ...]
    """All processes of the tree."""
    findings: tuple[Finding, ...]
    """All findings, the worst first."""
    given: CriuOpts
    """The options that were given."""
    opts: CriuOpts
    """These, and the options that the findings set: the options of the dump."""
    restore_opts: CriuOpts
    """The options of a restore of that dump, without what ``restore_needs`` names."""
    restore_needs: tuple[RestoreNeed, ...]
    """What the caller of that restore has to provide in addition; see ``for_restore``."""
    size: ImageSize
    """The expected size of the images."""

    @property
    def verdict(self) -> Verdict:
        """Outcome of a dump with the options as given."""
        if self.stops:
            return Verdict.FAILS
        if self.no_restore:
            return Verdict.NO_RESTORE
        return Verdict.NEEDS_OPTIONS if self.needs else Verdict.WORKS

    @property
    def stops(self) -> tuple[Finding, ...]:
        """Findings that make the dump fail with any options."""
        return self._of(Severity.STOPS)

    @property
    def needs(self) -> tuple[Finding, ...]:
        """Findings that make the dump fail unless an option is set."""
        return self._of(Severity.NEEDS_OPTION)

    @property
    def no_restore(self) -> tuple[Finding, ...]:
        """Findings that make a restore on this machine by this caller fail."""
        return self._of(Severity.NO_RESTORE)

    @property
    def lost(self) -> tuple[Finding, ...]:
        """Findings on what the restored processes will lack."""
        return self._of(Severity.LOST)

    def _of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(result for result in self.findings if result.severity is severity)

    def require(self) -> CriuOpts:
        """Return ``opts``, with which the process can be dumped.

        The added options keep as much state as possible. ``for_restore`` returns those for the
        restore.

        Emits a ``PreflightWarning`` for each thing that a restored process will lack, such as a
        pipe to a process outside of the tree, and for each thing that the restore cannot do without
        (``restore_needs``). Raises ``PreflightError``, which lists every
        obstacle with its cure, also if a restore here would fail and ``leave_running`` is not set
        (the process would be lost), and ``NoSuchProcessError``.
        """
        for finding in self.stops:
            if finding.id in ("no-process", "zombie"):
                raise NoSuchProcessError(
                    f"process {self.pid} cannot be dumped: {finding}",
                    verb="dump",
                    pid=self.pid,
                    cause=finding.message,
                    cure=finding.cure,
                )
        if self.stops or (self.no_restore and not self.given.leave_running):
            raise PreflightError(self)
        for finding in (*self.no_restore, *self.lost):
            warnings.warn(f"process {self.pid}: {finding}", PreflightWarning, stacklevel=2)
        for need in self.restore_needs:
            if need.required:
                warnings.warn(
                    f"process {self.pid}: the restore needs {need}", PreflightWarning, stacklevel=2
                )
        return self.opts

    def for_restore(self, given: Mapping[str, Any] | None = None) -> CriuOpts:
        """The options of the restore, with what its caller gives for ``restore_needs``.

        ``given`` has a descriptor or a path for the key of each need, such as
        ``{"socket:[4711]": connection, "mnt[/data]": "/srv/data", "root": "/"}``. ``OptionError``
        names each required key that is missing, and each key that is no need.
        """
        return filled(self.restore_opts, self.restore_needs, given or {})

    def changes(self) -> dict[str, Any]:
        """The options that ``opts`` adds to those given."""
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
            "options": plain_options(self.changes().items()),
            "restore_options": self.restore_opts.to_dict(),
            "restore_needs": [need.to_dict() for need in self.restore_needs],
            "findings": [result.to_dict() for result in self.findings],
            "size": self.size.to_dict(),
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        count = len(self.pids)
        others = "" if count < 2 else f" and {count - 1} other process{'es' * (count > 2)}"
        yield f"process {self.pid}{others}: {_SUMMARIES[self.verdict]}"
        if self.verdict in (Verdict.NEEDS_OPTIONS, Verdict.NO_RESTORE):
            for name, value in plain_options(self.changes().items()).items():
                yield encodable(f"    {name}={value!r}")
        yield from lines(self.findings, HEADINGS)
        if self.restore_needs and self.verdict is not Verdict.FAILS:
            yield "the restore needs:"
            yield from (encodable(f"    {need}") for need in self.restore_needs)
        if self.size.total:
            yield f"images: about {in_units(self.size.total)}"


def in_units(size: float) -> str:
    """A number of bytes with a binary unit."""
    return f"{size:.0f} bytes" if size < 1024 else size_text(size)


class PreflightError(CriuError):
    """A dump or the restore after it cannot work, and no option changes that.

    The message has every kind of obstacle and its cure.
    """

    def __init__(self, result: Preflight) -> None:
        self.findings = result.stops or result.no_restore
        """The obstacles."""
        what = "dumped" if result.stops else "restored here after a dump"
        groups = _grouped(self.findings)
        texts = [f"{group[0]}{_others(group)}" for group in groups]
        obstacles = "; ".join(f"({n}) {text}" for n, text in enumerate(texts, 1))
        super().__init__(
            f"process {result.pid} cannot be {what}: {obstacles}",
            verb="dump",
            pid=result.pid,
            cause="; ".join(group[0].message for group in groups),
            cure="; ".join(group[0].cure for group in groups if group[0].cure),
            options=[*dict.fromkeys(name for each in self.findings for name, _ in each.sets)],
        )


def _grouped(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings of one kind and with one cure together, in the order of the first ones."""
    result: dict[tuple[str, str], list[Finding]] = {}
    for each in findings:
        result.setdefault((each.id, each.cure), []).append(each)
    return [*result.values()]


def _others(group: list[Finding]) -> str:
    """The processes of the further findings of a group, as text."""
    if len(group) == 1:
        return ""
    pids = [*dict.fromkeys(str(each.pid) for each in group[1:] if each.pid is not None)]
    named = ", ".join(pids[:MOST_PIDS]) + (", …" if len(pids) > MOST_PIDS else "")
    return f" (and {len(group) - 1} more of this kind{f', pid {named}' if named else ''})"


class PreflightWarning(UserWarning):
    """``Preflight.require``: a restored process will lack something, or a restore will fail."""
