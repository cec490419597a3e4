"""Statistics: CRIU's numbers of a dump or restore, in the result.

CRIU writes its numbers to ``stats-dump`` and ``stats-restore`` in the work directory, and with
``display_stats`` prints some of them (to its standard output, which only a worker of the caller
has). The numbers of a result are compared with both, where the file is decoded by Google's
protobuf, and with the memory of the process.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuOpts, DumpStatistics, RestoreStatistics, Socket, dump, restore

from .conftest import Spawn
from .support.processes import Target, kill
from .support.workers import start_worker

PAGE = mmap.PAGESIZE
PRIVATE, SHARED = 6 * 2**20, 2 * 2**20

WITH_MEMORY = f"""
    import mmap, os
    private = bytearray(os.urandom(2**20) * {PRIVATE // 2**20})
    shared = mmap.mmap(-1, {SHARED})
    shared[:] = os.urandom(2**20) * {SHARED // 2**20}
    serve()
"""

DUMP = [
    "freezing_time",
    "frozen_time",
    "memdump_time",
    "memwrite_time",
    "pages_scanned",
    "pages_skipped_parent",
    "pages_written",
    "irmap_resolve",
    "pages_lazy",
    "page_pipes",
    "page_pipe_bufs",
    "shpages_scanned",
    "shpages_skipped_parent",
    "shpages_written",
]
RESTORE = ["pages_compared", "pages_skipped_cow", "forking_time", "restore_time", "pages_restored"]
"""The fields of ``stats.proto`` in the order of their numbers, by CRIU's names."""

DISPLAYED = {
    "Freezing time": "freezing_time",
    "Frozen time": "frozen_time",
    "Memory dump time": "memdump_time",
    "Memory write time": "memwrite_time",
    "IRMAP resolve time": "irmap_resolve_time",
    "Memory pages scanned": "pages_scanned",
    "Memory pages skipped from parent": "pages_skipped_parent",
    "Memory pages written": "pages_written",
    "Lazy memory pages": "pages_lazy",
    "Pages compared": "pages_compared",
    "Pages skipped COW": "pages_skipped_cow",
    "Pages restored": "pages_restored",
    "Restore time": "restore_time",
    "Forking time": "forking_time",
}
"""The texts that CRIU prints, and their fields."""


def _decoded(path: Path, which: int, names: list[str]) -> dict[str, int]:
    """The numbers of a statistics image, decoded by Google's protobuf."""
    protobuf = pytest.importorskip("google.protobuf.descriptor_pb2", reason="needs protobuf")
    from google.protobuf import descriptor_pool, message_factory, unknown_fields

    file = protobuf.FileDescriptorProto(name=f"stats-{which}.proto", package=f"stats{which}")
    entry = file.message_type.add(name="entry")
    for number, name in enumerate(names, 1):
        entry.field.add(name=name, number=number, type=4, label=1)  # optional, uint64
    outer = file.message_type.add(name="stats")
    outer.field.add(name="of", number=which, type=11, label=1, type_name=f".stats{which}.entry")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message: Any = message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"stats{which}.stats")
    )()
    data = path.read_bytes()
    _, _, size = struct.unpack_from("<III", data)
    message.ParseFromString(data[12 : 12 + size])
    assert not len(unknown_fields.UnknownFieldSet(message.of))
    result = {name: int(getattr(message.of, name)) for name in names}
    if "irmap_resolve" in result:
        result["irmap_resolve_time"] = result.pop("irmap_resolve")
    return result


@contextmanager
def _talkative_worker() -> Iterator[tuple[Socket, subprocess.Popen[bytes]]]:
    """A worker of the caller, whose standard output is a pipe."""
    ours, process = start_worker(stdout=subprocess.PIPE)
    with ours, process:
        try:
            yield Socket(ours), process
        finally:
            kill(process.pid)


def _displayed(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """The output of a worker, after it has ended."""
    assert process.stdout is not None
    text = process.stdout.read().decode()
    result = re.findall(r"^([A-Z][\w ]+): (\d+)", text, re.M)
    return {DISPLAYED[label]: int(value) for label, value in result}


def _resident(target: Target) -> int:
    """Pages of anonymous and shared memory of a process, without files."""
    text = Path(f"/proc/{target.pid}/status").read_text()
    return sum(
        int(kilobytes) * 1024 // PAGE
        for kilobytes in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", text, re.M)
    )


def test_the_numbers_are_those_of_the_files(spawn: Spawn, images: Path) -> None:
    """Every field of both results has the number in CRIU's file."""
    target = spawn(WITH_MEMORY)
    dumped = dump(target.pid, CriuOpts(images_directory=images)).statistics
    target.reap()
    assert isinstance(dumped, DumpStatistics)
    assert dataclasses.asdict(dumped) == _decoded(images / "stats-dump", 1, DUMP)
    restored = restore(CriuOpts(images_directory=images)).statistics
    assert isinstance(restored, RestoreStatistics)
    assert dataclasses.asdict(restored) == _decoded(images / "stats-restore", 2, RESTORE)


def test_the_numbers_are_those_that_criu_displays(spawn: Spawn, images: Path) -> None:
    """With ``display_stats`` CRIU prints them, too; without it nothing."""
    target = spawn(WITH_MEMORY)
    with _talkative_worker() as (via, process):
        opts = CriuOpts(images_directory=images, display_stats=True)
        statistics = dump(target.pid, opts, via=via).statistics
        shown = _displayed(process)
    target.reap()
    assert isinstance(statistics, DumpStatistics)
    assert len(shown) == 9
    assert shown == {name: getattr(statistics, name) for name in shown}

    with _talkative_worker() as (via, process):
        restored = restore(opts, via=via).statistics
        shown = _displayed(process)
    assert isinstance(restored, RestoreStatistics)
    assert shown == dataclasses.asdict(restored)

    with _talkative_worker() as (via, process):
        quiet = CriuOpts(images_directory=images, leave_running=True)
        assert dump(target.pid, quiet, via=via).statistics is not None
        assert _displayed(process) == {}


def test_the_numbers_are_plausible(spawn: Spawn, images: Path) -> None:
    """All pages of the process are in the images, and times are within that of the call."""
    target = spawn(WITH_MEMORY)
    resident = _resident(target)
    result = target.dump(CriuOpts(images_directory=images))
    dumped = result.statistics
    assert dumped is not None
    assert dumped.shpages_written == dumped.shpages_scanned == SHARED // PAGE
    written = dumped.pages_written + dumped.shpages_written
    assert written * PAGE == sum(path.stat().st_size for path in images.glob("pages-*.img"))
    assert PRIVATE // PAGE < dumped.pages_written <= dumped.pages_scanned
    assert abs(written - resident) < resident // 5
    assert 0 < dumped.memdump_time <= dumped.frozen_time < result.duration * 1e6
    assert 0 < dumped.freezing_time < result.duration * 1e6
    assert dumped.pages_skipped_parent == dumped.shpages_skipped_parent == dumped.pages_lazy == 0

    again = restore(CriuOpts(images_directory=images))
    assert again.statistics is not None
    assert again.statistics.pages_restored == dumped.pages_written
    assert 0 < again.statistics.restore_time < again.duration * 1e6


def test_more_memory_more_pages(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """For a process with more memory, the corresponding number of pages is written."""
    small = spawn()
    large = spawn(WITH_MEMORY)
    counts = []
    for number, target in enumerate((small, large)):
        opts = CriuOpts(images_directory=tmp_path / f"images-{number}", leave_running=True)
        statistics = dump(target.pid, opts).statistics
        assert statistics is not None
        counts.append(statistics.pages_written)
    assert PRIVATE // PAGE <= counts[1] - counts[0] < 2 * PRIVATE // PAGE


def test_they_are_in_the_work_directory(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """The files are written to the directory of the log."""
    target = spawn()
    work = tmp_path / "work"
    work.mkdir()
    opts = CriuOpts(images_directory=images, work_directory=work)
    statistics = dump(target.pid, opts).statistics
    target.reap()
    assert statistics is not None
    assert statistics.pages_written > 0
    assert (work / "stats-dump").exists()
    assert not (images / "stats-dump").exists()
    restored = restore(opts).statistics
    assert restored is not None
    assert restored.pages_restored == statistics.pages_written
