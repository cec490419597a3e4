"""The results of the calls."""

from __future__ import annotations

import functools
import os

from ._support.frozen_dataclass import dataclass
from ._support.pidfd import reap
from ._support.unpatched import closing, readable

__all__ = [
    "CheckResult",
    "CpuinfoResult",
    "DedupResult",
    "DumpResult",
    "DumpStatistics",
    "Features",
    "PageServerResult",
    "RestoreResult",
    "RestoreStatistics",
    "Version",
]

PAGE = os.sysconf("SC_PAGE_SIZE")
"""Bytes of a page in CRIU's page counts: the page size of this host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpStatistics:
    """CRIU's statistics of a dump or pre-dump (``stats-dump``). Times are microseconds."""

    freezing_time: int = 0
    """From the first attempt to freeze the processes until all were frozen."""
    frozen_time: int = 0
    """How long they were frozen."""
    memdump_time: int = 0
    """Time to read the memory of the processes."""
    memwrite_time: int = 0
    """Time to write the memory to the images."""
    irmap_resolve_time: int = 0
    """Time to find the paths of watched files (``force_irmap``)."""
    pages_scanned: int = 0
    """Pages that were examined."""
    pages_skipped_parent: int = 0
    """Pages that a parent image has already."""
    pages_written: int = 0
    """Pages in these images."""
    pages_lazy: int = 0
    """Pages left for a lazy restore to fetch."""
    page_pipes: int = 0
    """Pipes that the memory was transferred through."""
    page_pipe_bufs: int = 0
    """Buffers of these pipes."""
    shpages_scanned: int = 0
    """Pages of shared memory that were examined."""
    shpages_skipped_parent: int = 0
    """Pages of shared memory that a parent image has already."""
    shpages_written: int = 0
    """Pages of shared memory in these images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreStatistics:
    """CRIU's statistics of a restore (``stats-restore``). Times are microseconds."""

    forking_time: int = 0
    """Time to create the processes."""
    restore_time: int = 0
    """Time from the first fork until the processes run."""
    pages_compared: int = 0
    """Pages of copy-on-write memory compared with those of a parent process."""
    pages_skipped_cow: int = 0
    """Pages that stayed shared with the parent process."""
    pages_restored: int = 0
    """Pages filled from the images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpResult:
    """The result of a dump."""

    pid: int
    """The process that was dumped."""
    images: str
    """The images directory."""
    duration: float
    """Seconds, from the call until CRIU had ended."""
    log: str | None
    """The path of CRIU's log; None if the log is not a file of this call."""
    statistics: DumpStatistics | None
    """CRIU's statistics; None if CRIU wrote none."""
    pid_free: bool
    """Whether the pid is free again. False after ``leave_running``, and if the parent has not
    reaped the process in time; a restore would then find the pid in use."""
    reap_wait: float = 0.0
    """Seconds after ``duration`` of waiting for the parent to reap it (``reap_timeout``)."""
    restored: bool = False
    """Self-dump only: True in the restored copy, False in the original that runs on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreResult:
    """The result of a restore."""

    pid: int
    """The root process, in the caller's pid namespace."""
    images: str
    """The images directory."""
    duration: float
    """Seconds, from the call until CRIU had ended."""
    log: str | None
    """The path of CRIU's log; None if the log is not a file of this call."""
    statistics: RestoreStatistics | None
    """CRIU's statistics; None if CRIU wrote none."""
    exec_pid: int | None = None
    """With ``exec_cmd``: the process of that command, a child of the caller."""

    def open_pidfd(self) -> int:
        """Open a pidfd of the root process, which the caller closes.

        Raises ``ProcessLookupError`` if the process has ended. If its pid was reused meanwhile, the
        pidfd is one of the new process.
        """
        return os.pidfd_open(self.pid)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end of the root process, for ``timeout`` seconds at most.

        Returns the exit code (negative: the signal that ended it) of a child of the caller
        (:func:`restore_child`), and reaps it. Returns None for another process, since only its
        parent can read the exit code. Raises ``TimeoutError``.
        """
        try:
            pidfd = self.open_pidfd()
        except ProcessLookupError:
            return None
        with closing(pidfd):
            if not readable(pidfd, seconds=timeout):
                raise TimeoutError(f"pid {self.pid} runs on")
            return reap(pidfd)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageServerResult:
    """The result of the start of a page server."""

    pid: int
    """The pid of the server; 0 if it was not found, since it has already served its dump."""
    port: int
    """The TCP port that it listens on."""
    images: str
    """The images directory."""
    log: str | None
    """The path of CRIU's log; None if the log is not a file of this call."""
    duration: float
    """Seconds, from the call until it listened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuinfoResult:
    """The result of ``cpuinfo_dump`` or ``cpuinfo_check``."""

    images: str
    """The directory with ``cpuinfo.img``."""
    duration: float
    """Seconds."""
    log: str | None
    """The path of CRIU's log; None if the log is not a file of this call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupResult:
    """The result of ``dedup``."""

    images: str
    """The images directory."""
    duration: float
    """Seconds."""
    log: str
    """CRIU's log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """The result of a check: CRIU works on this kernel."""

    duration: float
    """Seconds."""
    warnings: tuple[str, ...] = ()
    """CRIU's messages about features that are missing and not required."""


@functools.total_ordering
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Version:
    """The release of a ``criu`` or libcriu. Compares by :attr:`number`."""

    major: int
    minor: int
    sublevel: int = 0
    git: str | None = None
    """The git description, if it was built from a checkout."""
    name: str | None = None
    """The name of the release."""

    @property
    def number(self) -> int:
        """As in ``criu_get_version()``: 40201 for 4.2.1; a git build counts as the next minor."""
        if self.git:
            return self.major * 10000 + (self.minor + 1) * 100
        return self.major * 10000 + self.minor * 100 + self.sublevel

    @classmethod
    def parse(cls, text: str) -> Version:
        """Parse text such as ``"4.2.1"``. Raises ``ValueError``."""
        numbers = text.split(".") if isinstance(text, str) else []
        if len(numbers) not in (2, 3) or not all(
            each.isascii() and each.isdecimal() for each in numbers
        ):
            raise ValueError(f"{text!r} is not a release such as 4.2 or 4.2.1")
        major, minor, sublevel, *_ = *map(int, numbers), 0
        return cls(major=major, minor=minor, sublevel=sublevel)

    def __eq__(self, other: object) -> bool:
        return self.number == other.number if isinstance(other, Version) else NotImplemented

    def __lt__(self, other: Version) -> bool:
        return self.number < other.number if isinstance(other, Version) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.number)

    def __str__(self) -> str:
        short = f"{self.major}.{self.minor}"
        return f"{short}.{self.sublevel}" if self.sublevel else short


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """The features of this kernel that CRIU can use."""

    mem_track: bool
    """Tracking of changed memory (soft-dirty): pre-dump and ``track_mem`` need it."""
    lazy_pages: bool
    """userfaultfd, for ``lazy_pages``."""
    pidfd_store: bool
    """Storing pidfds in a socket between dumps, for ``pidfd_store_sk``. CRIU 3.16."""
    mem_compression: bool = False
    """Compressed pages, for ``compress``; False before CRIU 4.3."""
