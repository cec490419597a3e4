"""Dumps and restores of large processes, compared with ``criu`` and a copy of the bytes."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycriu_native import (
    CriuError,
    CriuOpts,
    UnsupportedError,
    WorkerPool,
    dump,
    page_server_child,
    restore,
)

from .common import Row, Target, adopt, criu, main, note, row, scratch
from .newest import PROGRAM, Newest, RefusedError

MIB = 2**20
TIMES = 3
"""The number of rounds; each dumps and restores every process in every way."""
SPARE = 2048
"""The memory that is left free, in MiB."""

NEWEST: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "4.3, writeback": ({}, {}),
    "4.3, direct": ({"image_io_mode": "direct"}, {"image_io_mode": "direct"}),
    "4.3, compressed": ({"compress": "block"}, {"decompress_threads": 0}),
    "4.3, compressed, one thread": ({"compress": "block"}, {"decompress_threads": 1}),
}
"""Options of CRIU 4.3: those of the dump, and those of the restore."""

Way = tuple[Callable[[], float], Callable[[], float]]
"""A dump and a restore, and the seconds that each takes."""


def measure(quick: bool) -> list[Row]:
    """Repeat each way in turn: dump, restore, and verify the memory."""
    adopt()
    rows: list[Row] = []
    newest = Newest() if os.path.exists(PROGRAM) else None
    if newest is None:
        rows.append(note("CRIU 4.3", "it is not installed: set CRIU_NEWEST to its criu program"))
    try:
        for where, base in (("tmpfs", "/dev/shm"), ("disk", os.environ.get("TMPDIR", "/var/tmp"))):
            for mib in (1024,) if quick else (1024, 4096):
                why = _no_room(base, mib)
                if why:
                    rows.append(note("throughput", why, on=where, MiB=mib))
                    continue
                with scratch(base) as directory:
                    rows += _Case(directory, where, mib, newest).measure(TIMES)
    finally:
        if newest is not None:
            newest.close()
    return rows


def _no_room(base: str, mib: int) -> str | None:
    """The reason why a process of this size cannot be measured."""
    result = os.statvfs(base)
    if result.f_bavail * result.f_frsize < 2 * mib * MIB:
        return f"{base} has less free space than twice this size"
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    # The process, its images in memory or in the page cache, and the copy for comparison.
    if free // 1024 < 3 * mib + SPARE:
        return f"{free // 1024} MiB of memory are available, {3 * mib + SPARE} are needed"
    return None


def _cached() -> float:
    """The size of files in the page cache, in MiB."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Cached:")) / 1024


def timed(body: Callable[[], object]) -> Callable[[], float]:
    """Return a function that calls ``body`` and returns its duration in seconds."""

    def sample() -> float:
        started = time.perf_counter()
        body()
        return time.perf_counter() - started

    return sample


class _Case:
    """One process, and images in one directory."""

    def __init__(self, directory: Path, where: str, mib: int, newest: Newest | None) -> None:
        self.directory = directory
        self.where = where
        self.mib = mib
        self.newest = newest
        self.images = directory / "images"
        self.opts = CriuOpts(images_directory=self.images)
        self.taken: dict[tuple[str, str], list[float]] = {}
        self.cached: dict[str, list[float]] = {}
        self.target = Target(directory, mib)

    def measure(self, times: int) -> list[Row]:
        """Run a number of rounds of all ways."""
        refused: dict[str, str] = {}
        try:
            with WorkerPool(1) as warm:
                ways = self._ways(warm)
                for _ in range(times):
                    # First, because the host of a virtual machine allocates memory at first use.
                    self._limits()
                    for name, way in ways.items():
                        if name not in refused and (why := self._take(name, way)):
                            refused[name] = why
        finally:
            self.target.end()
        case: dict[str, Any] = {"on": self.where, "MiB": self.mib}
        rows = [
            row(
                what, "GB/s", [self.mib * MIB / seconds / 1e9 for seconds in taken], by=name, **case
            )
            for (name, what), taken in self.taken.items()
        ]
        if self.where == "disk":
            rows += [
                row("left in the page cache", "MiB", result, by=name, **case)
                for name, result in self.cached.items()
            ]
        return rows + [note("dump", why, by=name, **case) for name, why in refused.items()]

    def _ways(self, warm: WorkerPool) -> dict[str, Way]:
        opts, images, pid = self.opts, self.images, self.target.pid
        result: dict[str, Way] = {
            "pycriu_native": (
                timed(lambda: dump(pid, opts, via=warm)),
                timed(lambda: restore(opts, via=warm)),
            ),
            "the criu program": (
                timed(lambda: criu("dump", "-t", pid, "-D", images, "-o", "dump.log")),
                timed(lambda: criu("restore", "-D", images, "-o", "restore.log", "-d")),
            ),
            "page server on loopback": (
                timed(self._to_page_server),
                timed(lambda: restore(opts, via=warm)),
            ),
        }
        newest = self.newest
        if newest is not None:
            here = {"images_directory": str(images)}
            for name, (saving, restoring) in NEWEST.items():
                result[name] = (
                    lambda saving=saving: newest.dump(pid, {**here, **saving}, self._collect),  # type: ignore[misc]
                    lambda restoring=restoring: newest.restore({**here, **restoring}),  # type: ignore[misc]
                )
        return result

    def _to_page_server(self) -> None:
        serving = CriuOpts(images_directory=self.images, page_server="127.0.0.1:0")
        with page_server_child(serving) as server:
            there = ("127.0.0.1", server.result.port)
            dump(self.target.pid, CriuOpts(images_directory=self.images, page_server=there))
            server.wait(60)

    def _take(self, name: str, way: Way) -> str | None:
        """One dump and one restore. Returns the reason if it was refused."""
        save, bring_back = way
        self._clear()
        before = _cached()
        try:
            saved = save()
        except (CriuError, UnsupportedError, RefusedError) as error:
            if not self.target.is_intact():
                raise
            response = str(error).partition(" (/")[0].partition("; ")[0]
            return re.sub(r"^dump of pid \d+ failed: ", "", response)
        self._collect()
        after = _cached()
        back = bring_back()
        if not self.target.is_intact():
            raise AssertionError(f"{name}: the memory has changed")
        self.taken.setdefault((name, "dump"), []).append(saved)
        self.taken.setdefault((name, "restore"), []).append(back)
        self.cached.setdefault(name, []).append(max(0.0, after - before))
        return None

    def _clear(self) -> None:
        """Remove the images, so that none of their data has to be written to the disk."""
        shutil.rmtree(self.images, ignore_errors=True)
        self.images.mkdir()

    def _collect(self) -> None:
        """Reap the dumped process, which is a child by fork or as an adopted orphan."""
        if self.target.process.returncode is None:
            self.target.reap()
            return
        try:
            os.waitpid(self.target.pid, 0)
        except ChildProcessError:
            while os.path.exists(f"/proc/{self.target.pid}"):
                time.sleep(0.0005)

    def _limits(self) -> None:
        """Copy the bytes, one MiB at a time: from a file to new memory, and to a file."""
        copy = self.directory / "copy"
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        with mmap.mmap(-1, self.mib * MIB, flags=private) as memory, memoryview(memory) as bytes_:
            for offset in range(0, len(bytes_), MIB):
                bytes_[offset : offset + MIB] = os.urandom(4096) * 256
            ways = {"a copy of the bytes": 0}
            if self.where == "disk":
                ways["a copy past the page cache"] = os.O_DIRECT
            for name, how in ways.items():
                self._clear()
                write = timed(lambda how=how: _write(copy, bytes_, how))  # type: ignore[misc]
                saved = min(write(), write())  # in the second, the file system's metadata is cached
                memory.madvise(mmap.MADV_DONTNEED)  # the pages are allocated again when read into
                back = timed(lambda how=how: _read(copy, bytes_, how))()  # type: ignore[misc]
                copy.unlink()
                self.taken.setdefault((name, "dump"), []).append(saved)
                self.taken.setdefault((name, "restore"), []).append(back)


def _write(path: Path, data: memoryview, how: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | how, 0o600)
    try:
        for offset in range(0, len(data), MIB):
            os.write(fd, data[offset : offset + MIB])
    finally:
        os.close(fd)


def _read(path: Path, place: memoryview, how: int) -> None:
    fd = os.open(path, os.O_RDONLY | how)
    try:
        for offset in range(0, len(place), MIB):
            os.readv(fd, [place[offset : offset + MIB]])
    finally:
        os.close(fd)


if __name__ == "__main__":
    main("throughput", __doc__ or "", measure)
