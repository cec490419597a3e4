"""Progress of long calls, measured from outside by another thread.

Each verb that moves memory, a migration, and waiting for a page server or a lazy-pages daemon take
``on_progress``: a function that is called with a :class:`Progress` at the beginning, four times a
second, and at a successful end. It is called on another thread, and does not slow the call down.
If it raises, that is logged (``pycriu_native``, with the traceback), and it is not called again.

CRIU does not report progress. It is derived: in a dump from the memory of the processes
(``/proc/PID/smaps_rollup``) and the growing images; in a restore from the images and the growing
memory of the processes; of a lazy-pages daemon from the bytes that it has read (``/proc/PID/io``)
or received (``TCP_INFO``). Pages that a dump sends to a page server on another host are not
counted.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
from collections.abc import Callable, Iterator

from .._checks.work_directory import path_of
from .._integrity.dump_marker import with_parents
from .._support.lazy import socket
from .._support.sockets import of_another
from .._support.unpatched import Event, Thread
from .._system import mappings
from .._system.descriptors import descriptors_of, opened_directory
from .._system.process import bytes_read
from .._system.process_tree import process_tree
from ..enums import Verb
from ..options.criu_opts import CriuOpts
from . import logs
from .call import Call
from .progress_state import OnProgress, Progress

INTERVAL = 0.25
"""Seconds between two measurements."""

INTERRUPTING = "interrupting"
"""The phase of a call that is being undone."""

SMOOTHING = 0.3
"""Weight of the last measurement in the rate."""

_COUNTED = ("Anonymous", "Swap", "Pss_Shmem")
_PAGES = re.compile(r"pages-.*\.img")
_RECEIVED = struct.Struct("128xQ")
"""``tcpi_bytes_received`` in the kernel's ``struct tcp_info``."""


Measure = Callable[[], tuple[str, int, int | None]]
"""Phase, bytes done, bytes to do."""


class Operation:
    """The state of a reported operation."""

    ends_well = True
    """False: do not report a successful end, although the block raises nothing."""


@contextlib.contextmanager
def reporting(on_progress: OnProgress | None, measure: Measure) -> Iterator[Operation]:
    """Report progress during the block, and once more if it succeeds."""
    operation = Operation()
    if on_progress is None:
        yield operation
        return
    reporter = _Reporter(on_progress, measure)
    thread = Thread(target=reporter.run, name="progress", daemon=True)
    try:
        thread.start()
        yield operation
        reporter.well = operation.ends_well
    finally:
        reporter.over.set()
        with contextlib.suppress(RuntimeError):  # an interruption of ``start``
            thread.join()


@contextlib.contextmanager
def observing(on_progress: OnProgress, call: Call) -> Iterator[None]:
    """Report the progress of a dump, a pre-dump or a restore."""
    directory = directory_of(call.request.opts)
    phase = str(call.request.verb)
    if call.request.verb is Verb.RESTORE:
        total = size_of_pages(directory)

        def measure() -> tuple[str, int, int | None]:
            # CRIU forks the processes, and is their parent until they run.
            worker = call.worker_pid
            made = memory_of(process_tree(worker)[1:]) if worker else 0
            return phase, min(made, total), total
    else:
        pid = call.request.pid
        memory = None if pid is None else memory_of(process_tree(pid))

        def measure() -> tuple[str, int, int | None]:
            return phase, size_of_pages(directory, parents=False), memory

    def measure_or_wait() -> tuple[str, int, int | None]:
        return (INTERRUPTING, 0, None) if call.is_undone else measure()

    with reporting(on_progress, measure_or_wait):
        yield


def directory_of(opts: CriuOpts) -> str:
    """The images directory."""
    given = opts.images_directory
    return path_of(opts.images_dir or "" if given is None else given)


class Feeding:
    """The memory that a lazy-pages daemon has loaded, measured from outside."""

    def __init__(self, pid: int, directory: str, *, from_elsewhere: bool) -> None:
        self._pid, self._from_elsewhere = pid, from_elsewhere
        self._total = lazy_bytes(directory) if from_elsewhere else size_of_pages(directory)
        self._done = 0

    def __call__(self) -> tuple[str, int, int | None]:
        """Phase, bytes done, bytes to do; after the end of the daemon, the last values."""
        with contextlib.suppress(OSError, ValueError, struct.error):
            count = received_by if self._from_elsewhere else bytes_read
            self._done = max(self._done, count(self._pid))
        return str(Verb.LAZY_PAGES), min(self._done, self._total), self._total


class _Reporter:
    """The thread that measures and reports."""

    def __init__(self, on_progress: OnProgress, measure: Measure) -> None:
        self._on_progress = on_progress
        self._measure = measure
        self.over = Event()
        self.well = False
        self._phase = ""
        self._seen = 0
        self._at = 0.0
        self._rate = 0.0

    def run(self) -> None:
        """Measure and report until ``over`` is set."""
        try:
            self._report()
            while not self.over.wait(INTERVAL):
                self._report()
            if self.well:
                self._report(last=True)
        except Exception as error:
            logs.warn("on_progress raised, and is not called again", error=error)

    def _report(self, *, last: bool = False) -> None:
        phase, done, total = self._measure()
        now = time.monotonic()
        if phase != self._phase or done < self._seen:
            self._phase, self._rate = phase, 0.0
        elif now > self._at:
            rate = (done - self._seen) / (now - self._at)
            self._rate += (rate - self._rate) * (SMOOTHING if self._rate else 1.0)
        self._seen, self._at = done, now
        remaining: float | None = None
        if last:
            # Restored processes run now and are not measured; a daemon has ended.
            if phase in (str(Verb.RESTORE), str(Verb.LAZY_PAGES)):
                done = total or 0
            total = done
            remaining = 0.0
        elif total is not None and self._rate > 0:
            remaining = max(0.0, (total - done) / self._rate)
        self._on_progress(
            Progress(phase=phase, done=done, total=total, rate=self._rate, left=remaining)
        )


def memory_of(pids: list[int]) -> int:
    """Bytes of memory of processes that a dump would save; shared memory counts once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            memory = mappings.memory_of(pid)
            total += sum(memory.get(kind, 0) for kind in _COUNTED)
    return total


def size_of_pages(directory: str, *, parents: bool = True) -> int:
    """Bytes of pages in an images directory and its parents."""
    total = 0
    for at in with_parents(directory) if parents else (directory,):
        with contextlib.suppress(OSError), os.scandir(at) as entries:
            for entry in entries:
                if _PAGES.fullmatch(entry.name):
                    total += entry.stat().st_size
    return total


def lazy_bytes(directory: str) -> int:
    """Bytes of pages in the page maps of a directory that are loaded lazily."""
    from .._integrity.image_files import DamagedError, ImageFiles, kind_of  # few have such images

    total = 0
    with opened_directory(directory) as at:
        files = ImageFiles(at)
        for name in files.names:
            with contextlib.suppress(DamagedError):
                total += files.page_map(name).lazy if kind_of(name) == "PAGEMAP" else 0
    return total


def received_by(pid: int) -> int:
    """Bytes received over all TCP connections of a child process."""
    total = 0
    for fd in descriptors_of(pid, "socket:"):
        with contextlib.suppress(OSError), of_another(fd) as copy:
            message = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size)
            total += _RECEIVED.unpack(message)[0]
    return total
