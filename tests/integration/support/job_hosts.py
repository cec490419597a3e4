"""Hosts for jobs: mount namespaces with separate directories at one common path."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pycriu_native.jobs.directory import JobDirectory

from .jobs import STEPPER, RunningJob
from .processes import is_alive

LEASE = "12"
"""Seconds; long enough for a machine under load."""

_MOUNT = 'mount --bind "$0" "$1" && shift && exec "$@"'


@dataclass
class HostedJob(RunningJob):
    """A job on one host. ``place`` is shared, and has the files of the command."""

    host: str = "a"
    storage: str = ""

    def __post_init__(self) -> None:
        common = self.place / "job"
        local = self.place / f"host-{self.host}"
        for each in (common, local):
            each.mkdir(parents=True, exist_ok=True)
        self.path = str(common)
        self.directory = JobDirectory(local)
        self.prefix = ["unshare", "--mount", "sh", "-c", _MOUNT, str(local), self.path]
        storage = self.storage or str(self.place / "storage")
        self.options = (*self.options, "--storage", storage, "--lease", LEASE, "--keep", "2")

    def has_uploads(self, number: int) -> bool:
        status = self.directory.storage_status()
        return status is not None and status.uploads >= number

    def lose(self) -> None:
        """Kill all of its processes at once, as with a lost host."""
        assert self.process is not None
        self.process.kill()
        self.wait()


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes that are stopped by SIGSTOP, the oldest first."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # a helper that has ended
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def commands(place: Path) -> list[int]:
    """The processes of the command in a place, on any host."""
    result = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                ours = words[1:3] == [os.fsencode(STEPPER), os.fsencode(place)]
                if ours and is_alive(int(name)):
                    result.append(int(name))
    return result


@contextlib.contextmanager
def never_two(place: Path) -> Iterator[None]:
    """Check all the time that at most one process of the command exists."""
    over = threading.Event()
    most: list[list[int]] = [[]]

    def look() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], commands(place), key=len)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
    assert len(most[0]) == 1, most
