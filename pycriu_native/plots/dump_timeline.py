"""The timeline of a dump: from CRIU's log, whose lines have times, and from its statistics.

CRIU writes times into its log from ``log_level=3`` on. Without them only the statistics remain,
which have durations and no points in time. Facts: CRIU's ``criu/cr-dump.c`` (3.17 to 4.3); observed
with 4.2.1.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from .._integrity.statistics import read_dump
from .._support.unpatched import close
from ..errors import ImagesError
from ..results import DumpStatistics

__all__ = ["Span", "Timeline", "read_timeline"]

LOGS = ("dump.log", "pre-dump.log")

_LINE = re.compile(r"^\((\d+\.\d+)\)\s+(.*)$")
_TASK = re.compile(r"(?:Pre-d|D)umping task \(pid: (\d+)(?: comm: (.*))?\)$")
"""CRIU up to 3.17 logs no name."""
_LARGEST = 256 * 2**20
"""Bytes of a log that are read: those of a dump with ``log_level=4`` have many millions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Something that took its time. Times are seconds since CRIU began to log."""

    name: str
    """What was done; for a process its name."""
    begin: float
    end: float
    pid: int | None = None
    """The process that was saved; None: the dump as a whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """A dump or pre-dump, in time."""

    phases: tuple[Span, ...]
    """One after the other; empty if the log has no times."""
    processes: tuple[Span, ...]
    """When each process was saved."""
    memory: tuple[Span, ...]
    """When memory was taken or written, in the process that was saved then."""
    frozen: tuple[float, float] | None
    """When the processes were frozen; None if the log has no times."""
    end: float
    """The last time in the log; 0 without times."""
    statistics: DumpStatistics | None
    """CRIU's own numbers; None where it left none."""


def read_timeline(
    directory: str | os.PathLike[str], log: str | os.PathLike[str] | None = None
) -> Timeline:
    """The timeline of the dump whose log and statistics are in ``directory`` (the work directory).

    ``log`` is another log than its ``dump.log`` or ``pre-dump.log``. Raises ``ImagesError`` where
    there is neither a log with times nor a statistics image.
    """
    directory = os.fspath(directory)
    statistics = _statistics(directory)
    reader = _Reader()
    for path in [os.path.join(directory, name) for name in LOGS] if log is None else [log]:
        if os.path.exists(path):
            with open(path, errors="replace") as file:
                for line in file.read(_LARGEST).splitlines():
                    reader.take(line)
            break
    if not reader.marks and statistics is None:
        raise ImagesError(
            f"{directory}: no log with times and no statistics; dump with log_level=4, and give "
            "the directory that the log went to"
        )
    return reader.timeline(statistics)


def _statistics(directory: str) -> DumpStatistics | None:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ImagesError(f"{directory}: {error.strerror}") from None
    try:
        return read_dump(fd)
    finally:
        close(fd)


class _Reader:
    """Collects the times from the lines of a log."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        """When each thing happened first."""
        self.last = 0.0
        self._tasks: list[tuple[float, int, str]] = []
        self._pipe: float | None = None
        self._memory: list[Span] = []

    def take(self, line: str) -> None:
        """One line."""
        result = _LINE.match(line)
        if result is None:
            return
        self.last = at = float(result[1])
        text = result[2]
        if task := _TASK.match(text):
            self._tasks.append((at, int(task[1]), task[2] or "pid"))
            self._mark("tasks", at)
        elif text.startswith("page-pipe: Create page pipe"):
            self._pipe = at
        elif text.startswith("page-pipe: Killing page pipe") and self._pipe is not None:
            pid = self._tasks[-1][1] if self._tasks else None
            self._memory.append(Span(name="memory", begin=self._pipe, end=at, pid=pid))
            self._pipe = None
        else:
            for name, begins in _MARKS.items():
                if text.startswith(begins):
                    self._mark(name, at)

    def _mark(self, name: str, at: float) -> None:
        self.marks.setdefault(name, at)

    def timeline(self, statistics: DumpStatistics | None) -> Timeline:
        """All of it."""
        if "seized" not in self.marks:
            return Timeline(
                phases=(), processes=(), memory=(), frozen=None, end=0.0, statistics=statistics
            )
        saved = self.marks.get("saved", self.marks.get("unfreeze", self.last))
        starts = [*(at for at, _, _ in self._tasks[1:]), saved]
        processes = tuple(
            Span(name=name, begin=at, end=end, pid=pid)
            for (at, pid, name), end in zip(self._tasks, starts, strict=bool(self._tasks))
        )
        return Timeline(
            phases=tuple(self._phases()),
            processes=processes,
            memory=tuple(self._memory),
            frozen=self._frozen(statistics),
            end=self.last,
            statistics=statistics,
        )

    def _phases(self) -> list[Span]:
        result = []
        begin = 0.0
        for name, mark in _PHASES:
            end = self.last if mark == "end" else self.marks.get(mark)
            if end is not None and end >= begin:
                result.append(Span(name=name, begin=begin, end=end))
                begin = end
        return result

    def _frozen(self, statistics: DumpStatistics | None) -> tuple[float, float]:
        # CRIU stops its clock just before these lines, after the last process was resumed.
        end = self.marks.get("written", self.marks.get("stats", self.last))
        if statistics is None:
            return self.marks["seized"], end
        return max(0.0, end - statistics.frozen_time / 1e6), end


_MARKS = {
    "dumping": ("Dumping processes (pid", "Pre-dumping processes (pid"),
    "seized": ("Seized task", "freezing processes"),
    "saved": ("Dumping file-locks",),
    "unfreeze": ("Unfreezing tasks",),
    "written": ("Pre-dumping tasks' memory",),
    "stats": ("Writing stats",),
}

_PHASES = (
    ("start", "dumping"),
    ("prepare", "seized"),
    ("collect", "tasks"),
    ("save processes", "saved"),
    ("finish", "unfreeze"),
    ("resume", "written"),
    ("resume", "stats"),
    ("close", "end"),
)
"""The phases in their order, each with what ends it."""
