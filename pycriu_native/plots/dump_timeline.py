"""The timeline of a dump, from CRIU's log and its statistics.

The lines of the log have times with ``log_level=3`` or higher. The statistics have only durations.
Facts: CRIU's ``criu/cr-dump.c`` (3.17 to 4.3); observed with 4.2.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .._integrity.statistics import read_dump
from .._system.descriptors import opened_directory
from ..errors import ImagesError
from ..results import DumpStatistics

LOGS = ("dump.log", "pre-dump.log")

_LINE = re.compile(r"^\((\d+\.\d+)\)\s+(.*)$")
_TASK = re.compile(r"(?:Pre-d|D)umping task \(pid: (\d+)(?: comm: (.*))?\)$")
"""CRIU 3.17 and earlier do not log the name."""
_LARGEST = 256 * 2**20
"""Limit of the bytes that are read from a log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """An interval. Times are seconds since CRIU began to log."""

    name: str
    """The name of the phase or process."""
    begin: float
    end: float
    pid: int | None = None
    """The process that was saved; None for a phase of the dump."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """The intervals of a dump or pre-dump."""

    phases: tuple[Span, ...]
    """The phases in their order; empty if the log has no times."""
    processes: tuple[Span, ...]
    """When each process was saved."""
    memory: tuple[Span, ...]
    """When the memory of each process was read or written."""
    frozen: tuple[float, float] | None
    """When the processes were frozen; None if the log has no times."""
    end: float
    """The last time in the log; 0 without times."""
    statistics: DumpStatistics | None
    """CRIU's statistics; None if the directory has none."""


def read_timeline(
    directory: str | os.PathLike[str], log: str | os.PathLike[str] | None = None
) -> Timeline:
    """Read the timeline of a dump. ``directory`` is its work directory, with log and statistics.

    ``log`` is the path of a log with another name than ``dump.log`` or ``pre-dump.log``. Raises
    ``ImagesError`` if there is neither a log with times nor a statistics image, or if a log cannot
    be read.
    """
    directory = os.fspath(directory)
    statistics = statistics_of(directory)
    reader = _Reader()
    usual = (os.path.join(directory, name) for name in LOGS)
    path = next(filter(os.path.exists, usual), None) if log is None else os.fspath(log)
    if path is not None:
        try:
            with open(path, errors="replace") as file:
                for line in file.read(_LARGEST).splitlines():
                    reader.take(line)
        except OSError as error:
            raise ImagesError(f"{path} cannot be read: {error.strerror}") from None
    if not reader.marks and statistics is None:
        raise ImagesError(
            f"{directory}: no log with times and no statistics; dump with log_level=4, and name "
            "the directory of the log"
        )
    return reader.timeline(statistics)


def statistics_of(directory: str) -> DumpStatistics | None:
    """The statistics of a dump in a directory; None if it has none. Raises ``ImagesError``."""
    try:
        with opened_directory(directory) as fd:
            return read_dump(fd)
    except OSError as error:
        raise ImagesError(f"{directory}: {error.strerror}") from None


class _Reader:
    """Collects the times from the lines of a log."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        """The first time of each message in ``_MARKS``."""
        self.last = 0.0
        self._tasks: list[tuple[float, int, str]] = []
        self._pipe: float | None = None
        self._memory: list[Span] = []

    def take(self, line: str) -> None:
        result = _LINE.match(line)
        if result is None:
            return
        self.last = at = float(result[1])
        text = result[2]
        if task := _TASK.match(text):
            self._tasks.append((at, int(task[1]), task[2] or "pid"))
            self.marks.setdefault("tasks", at)
        elif text.startswith("page-pipe: Create page pipe"):
            self._pipe = at
        elif text.startswith("page-pipe: Killing page pipe") and self._pipe is not None:
            pid = self._tasks[-1][1] if self._tasks else None
            self._memory.append(Span(name="memory", begin=self._pipe, end=at, pid=pid))
            self._pipe = None
        else:
            for name, begins in _MARKS.items():
                if text.startswith(begins):
                    self.marks.setdefault(name, at)

    def timeline(self, statistics: DumpStatistics | None) -> Timeline:
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

    def _phases(self) -> Iterator[Span]:
        begin = 0.0
        for name, mark in _PHASES:
            end = self.last if mark == "end" else self.marks.get(mark)
            if end is not None and end >= begin:
                yield Span(name=name, begin=begin, end=end)
                begin = end

    def _frozen(self, statistics: DumpStatistics | None) -> tuple[float, float]:
        # CRIU takes frozen_time just before these lines, after it has resumed the last process.
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
"""The phases in their order, each with the mark that ends it."""
