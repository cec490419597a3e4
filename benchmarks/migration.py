"""The time for which a process that writes to its memory is stopped by a migration.

Source and destination are on this machine, in separate network, pid and mount namespaces with a
veth pair between them, so the network is as fast as memory, and both share the processors.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pycriu_native import CriuOpts, MigrationMode, dump, feature_check, migrate_out, restore

from .common import HERE, Row, Target, adopt, main, note, row, scratch

sys.path.insert(0, str(HERE.parent))

from tests.integration.support.hosts import OURS, cable, host
from tests.integration.support.migrations import destination, far_pid

PIPE_MAX_SIZE = Path("/proc/sys/fs/pipe-max-size")
NEEDED = 2**22
"""The size of the pipe through which CRIU serves pages, in bytes."""

Sample = dict[str, float]


def measure(quick: bool) -> list[Row]:
    """Measure each way in turn, with a new process each time."""
    adopt()
    mib, times = (256, 2) if quick else (1024, 3)
    ways: dict[str, Callable[[Path, int], Sample]] = {"dump and restore": _dump_and_restore}
    rows: list[Row] = []
    for mode in (MigrationMode.STOP_AND_COPY, MigrationMode.PRE_COPY, MigrationMode.POST_COPY):
        if mode is MigrationMode.PRE_COPY and not feature_check().mem_track:
            why = "this kernel does not track changed memory (soft-dirty)"
            rows.append(note("migration", why, by=str(mode)))
            continue
        ways[str(mode)] = lambda directory, mib, mode=mode: _migration(directory, mib, mode)  # type: ignore[misc]
    taken: dict[tuple[str, str], list[float]] = {}
    with _large_pipes():
        for _ in range(times):
            for name, way in ways.items():
                with scratch() as directory:
                    for what, value in way(directory, mib).items():
                        taken.setdefault((name, what), []).append(value * 1e3)
    rows += [row(what, "ms", samples, by=by, MiB=mib) for (by, what), samples in taken.items()]
    return rows


@contextmanager
def _large_pipes() -> Iterator[None]:
    before = PIPE_MAX_SIZE.read_text()
    PIPE_MAX_SIZE.write_text(str(max(int(before), NEEDED)))
    try:
        yield
    finally:
        PIPE_MAX_SIZE.write_text(before)


def _process(directory: Path, mib: int) -> Target:
    far_pid()
    target = Target(directory, mib, writes=1)
    target.request_report()  # the longest stop is measured from here on
    return target


def _felt(target: Target, pid: int) -> float:
    """The longest time between two steps of the process."""
    report = target.request_report(pid)
    if report[0] != target.first[0]:
        raise AssertionError("the restored process has another password")
    return float(report[2])


def _dump_and_restore(directory: Path, mib: int) -> Sample:
    """Dump and restore on one host, with images on its disk."""
    target = _process(directory, mib)
    try:
        opts = CriuOpts(images_directory=directory / "images")
        reaper = threading.Thread(target=target.process.wait)
        reaper.start()
        began = time.monotonic()
        dump(target.pid, opts)
        reaper.join()
        restore(opts)
        taken = time.monotonic() - began
        return {
            "felt by the process": _felt(target, target.pid),
            "downtime": taken,
            "whole call": taken,
        }
    finally:
        target.end()


def _migration(directory: Path, mib: int, mode: MigrationMode) -> Sample:
    """Migrate between two hosts."""
    target = _process(directory, mib)
    try:
        with ExitStack() as owned:
            other = owned.enter_context(host())
            _, address = owned.enter_context(cable(OURS, other))
            there = owned.enter_context(
                destination(other, address, directory, arguments={"insecure": True})
            )
            reaper = threading.Thread(target=target.process.wait)
            reaper.start()
            result = migrate_out(target.pid, CriuOpts(), to=there.place, mode=mode, insecure=True)
            reaper.join()
            return {
                "felt by the process": _felt(target, there.inside(result.pid)),
                "downtime": result.downtime,
                "whole call": result.duration,
            }
    finally:
        target.end()


if __name__ == "__main__":
    main("migration", __doc__ or "", measure)
