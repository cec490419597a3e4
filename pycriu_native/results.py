"""What the verbs return: values with units, nothing that needs closing."""

from __future__ import annotations

import functools
import os

from ._support.frozen_dataclass import dataclass, field
from ._support.unpatched import close, readable

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
"""Bytes of a page in CRIU's page counts: this host's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpStatistics:
    """CRIU's own account of a dump or pre-dump (``stats-dump``). Times are microseconds."""

    freezing_time: int = 0
    """From the first attempt to freeze the processes until all were frozen."""
    frozen_time: int = 0
    """How long they were frozen."""
    memdump_time: int = 0
    """Taking the memory out of the processes."""
    memwrite_time: int = 0
    """Writing it to the images."""
    irmap_resolve_time: int = 0
    """Looking for the paths of watched files (``force_irmap``)."""
    pages_scanned: int = 0
    """Pages that were looked at."""
    pages_skipped_parent: int = 0
    """Pages that a parent image has already."""
    pages_written: int = 0
    """Pages in these images."""
    pages_lazy: int = 0
    """Pages left for a lazy restore to fetch."""
    page_pipes: int = 0
    """Pipes that the memory went through."""
    page_pipe_bufs: int = 0
    """Their buffers."""
    shpages_scanned: int = 0
    """Pages of shared memory that were looked at."""
    shpages_skipped_parent: int = 0
    """Pages of shared memory that a parent image has already."""
    shpages_written: int = 0
    """Pages of shared memory in these images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreStatistics:
    """CRIU's own account of a restore (``stats-restore``). Times are microseconds."""

    forking_time: int = 0
    """Making the processes."""
    restore_time: int = 0
    """The whole, from the first fork until they run."""
    pages_compared: int = 0
    """Pages of copy-on-write memory compared with a parent process's."""
    pages_skipped_cow: int = 0
    """Pages that stayed shared with the parent process."""
    pages_restored: int = 0
    """Pages filled from the images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpResult:
    """A dump that is complete."""

    pid: int
    """The process that was dumped."""
    images: str
    """The images directory."""
    duration: float
    """Seconds, from the call until CRIU had ended."""
    log: str | None
    """CRIU's log; None where it went elsewhere."""
    statistics: DumpStatistics | None
    """CRIU's own numbers; None where it left none."""
    pid_free: bool
    """Whether the pid is free again. False after ``leave_running``, and where the parent has
    not reaped the process in time: a restore then finds its pid taken."""
    reap_wait: float = 0.0
    """Seconds after ``duration`` of waiting for the parent to reap it (``reap_timeout``)."""
    restored: bool = False
    """Self-dump only: True in the restored copy, False in the original that runs on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreResult:
    """Processes that run again."""

    pid: int
    """The root process, in the caller's pid namespace."""
    images: str
    """The images directory."""
    duration: float
    """Seconds, from the call until CRIU had ended."""
    log: str | None
    """CRIU's log; None where it went elsewhere."""
    statistics: RestoreStatistics | None
    """CRIU's own numbers; None where it left none."""
    exec_pid: int | None = None
    """With ``exec_cmd``: the process that became that command, a child of the caller's."""

    def open_pidfd(self) -> int:
        """A pidfd of the root process; the caller closes it. ``ProcessLookupError`` if it has
        ended.

        It is opened at the time of the call: if the process has ended and its pid was reused, this
        is not detected.
        """
        return os.pidfd_open(self.pid)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end of the root process, for ``timeout`` seconds at most.

        Its exit code (negative: the signal that ended it) if it is a child of the caller
        (:func:`restore_child`), which this reaps; None otherwise, because only a parent can read
        it.
        ``TimeoutError`` after the time.
        """
        try:
            pidfd = self.open_pidfd()
        except ProcessLookupError:
            return None
        try:
            if not readable(pidfd, seconds=timeout):
                raise TimeoutError(f"pid {self.pid} runs on")
            ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        except ChildProcessError:
            return None
        finally:
            close(pidfd)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


@dataclass(frozen=True, kw_only=True, slots=True)
class PageServerResult:
    """A page server that listens."""

    pid: int
    """The server."""
    port: int
    """The TCP port that it listens on."""
    images: str
    """The directory that pages go to."""
    log: str | None
    """CRIU's log; None where it went elsewhere."""
    duration: float
    """Seconds, from the call until it listened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuinfoResult:
    """What the processor can do was written, or fits what was written."""

    images: str
    """The directory with ``cpuinfo.img``."""
    duration: float
    """Seconds."""
    log: str | None
    """CRIU's log; None where it went elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupResult:
    """The parents of the images hold no page any more that the images replace."""

    images: str
    """The images directory."""
    duration: float
    """Seconds."""
    log: str
    """CRIU's log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """CRIU can work on this kernel."""

    duration: float
    """Seconds."""
    warnings: tuple[str, ...] = ()
    """CRIU's messages about features that are missing and not required."""


@functools.total_ordering
@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """The release of a ``criu`` or libcriu. Compares by its numbers."""

    major: int
    minor: int
    sublevel: int = 0
    git: str | None = field(default=None, compare=False)
    """Where it was built from a git checkout: its description."""
    name: str | None = field(default=None, compare=False)
    """The release's own name."""

    @property
    def number(self) -> int:
        """As ``criu_get_version()`` counts: 40201 for 4.2.1; git builds count as the next minor."""
        if self.git:
            return self.major * 10000 + (self.minor + 1) * 100
        return self.major * 10000 + self.minor * 100 + self.sublevel

    @classmethod
    def parse(cls, text: str) -> Version:
        """From text such as ``"4.2.1"``."""
        numbers = [int(part) for part in text.split(".")]
        return cls(major=numbers[0], minor=numbers[1], sublevel=[*numbers, 0][2])

    def __lt__(self, other: Version) -> bool:
        return self.number < other.number

    def __str__(self) -> str:
        short = f"{self.major}.{self.minor}"
        return f"{short}.{self.sublevel}" if self.sublevel else short


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What this kernel and this CRIU can do together."""

    mem_track: bool
    """Tracking of changed memory (soft-dirty): pre-dump and ``track_mem`` need it."""
    lazy_pages: bool
    """userfaultfd, for ``lazy_pages``."""
    pidfd_store: bool
    """pidfds that are passed along, for ``pidfd_store_sk``. CRIU 3.16."""
    mem_compression: bool = False
    """Compressed pages, for ``compress``; False before CRIU 4.3."""
