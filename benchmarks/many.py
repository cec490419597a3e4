"""Many processes dumped and restored at once, against the ``criu`` program under ``xargs -P``."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pycriu_native import (
    CriuOpts,
    dump,
    dump_many,
    feature_cache,
    restore_many,
    run_many,
    version,
)
from pycriu_native._transport.program import find_program

from .common import Row, Target, adopt, main, row, scratch, with_run_on

OURS, THEIRS = "pycriu_native", "the criu program"


def measure(quick: bool) -> list[Row]:
    """64 small processes; as many concurrent calls as processors, and four times as many.

    With and without CRIU's feature cache: without it, CRIU spends most of the time on probing the
    kernel.
    """
    rows: list[Row] = []
    with _pids_to_spare():
        for kind in ("tmpfs", "ramfs"):
            rows += with_run_on(kind, "many", *((16, 3) if quick else (64, 7)))
    return rows


@contextlib.contextmanager
def _pids_to_spare() -> Iterator[None]:
    """Raise ``pid_max``. Otherwise the kernel would reuse the pids of the dumped processes, because
    many processes start and end.
    """
    most = Path("/proc/sys/kernel/pid_max")
    before = most.read_text()
    with contextlib.suppress(PermissionError):
        most.write_text(str(2**22))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            most.write_text(before)


def inside(count: int, rounds: int) -> None:
    """Print the rows of this mount namespace as JSON."""
    adopt()
    rows: list[Row] = []
    processors = len(os.sched_getaffinity(0))
    with scratch("/dev/shm") as directory:
        targets = [Target(directory, 1, name=f"t{number}") for number in range(count)]
        try:
            first = CriuOpts(images_directory=directory / "first", leave_running=True)
            dump(targets[0].pid, first)  # CRIU writes its feature cache if /run is a tmpfs
            for parallel in (processors, 4 * processors):
                rows += _measure(directory, targets, parallel, rounds)
        finally:
            for target in targets:
                target.end()
    print(json.dumps(rows))


WHOSE = (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)


def _spent(whose: int) -> float:
    """The processor time, in seconds, of this process or of its descendants."""
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def _reap(targets: list[Target]) -> None:
    for target in targets:
        if target.process.returncode is None:
            target.reap()
        else:
            os.waitpid(target.pid, 0)


def _xargs(parallel: int, pids: list[int], *words: str) -> None:
    subprocess.run(
        ["xargs", "-P", str(parallel), "-I", "{}", find_program(), *words],
        input="\n".join(map(str, pids)),
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _ways(
    directory: Path, pids: list[int], parallel: int
) -> dict[str, dict[str, Callable[[], object]]]:
    """The calls of each way. ``version`` consists only of the start and the end of CRIU."""

    def opts(pid: int) -> CriuOpts:
        return CriuOpts(images_directory=directory / f"images-{pid}")

    def dumped() -> None:
        for done in dump_many(pids, opts, parallel=parallel):
            done.get()

    def restored() -> None:
        for done in restore_many(map(opts, pids), parallel=parallel):
            done.get()

    def versions() -> None:
        for done in run_many([version] * len(pids), parallel=parallel):
            done.get()

    images = f"{directory}/images-{{}}"
    xargs = functools.partial(_xargs, parallel, pids)
    return {
        OURS: {"version": versions, "dump": dumped, "restore": restored},
        THEIRS: {
            "version": lambda: xargs("--version"),
            "dump": lambda: xargs("dump", "-t", "{}", "-o", "dump.log", "-D", images),
            "restore": lambda: xargs("restore", "-d", "-o", "restore.log", "-D", images),
        },
    }


def _measure(directory: Path, targets: list[Target], parallel: int, rounds: int) -> list[Row]:
    taken: dict[tuple[str, str], list[float]] = {}
    work: dict[tuple[str, str], list[float]] = {}
    own: dict[tuple[str, str], list[float]] = {}
    pids = [target.pid for target in targets]
    ways = _ways(directory, pids, parallel)
    for number in range(rounds):
        for way in sorted(ways, reverse=number % 2 == 1):  # the order alternates
            for pid in pids:
                shutil.rmtree(directory / f"images-{pid}", ignore_errors=True)
                (directory / f"images-{pid}").mkdir()
            for what, body in ways[way].items():
                before = [*map(_spent, WHOSE)]
                started = time.perf_counter()
                body()
                taken.setdefault((way, what), []).append(time.perf_counter() - started)
                for spent, whose, since in zip((work, own), WHOSE, before, strict=True):
                    spent.setdefault((way, what), []).append(_spent(whose) - since)
                if what == "dump":
                    _reap(targets)
            if not all(target.is_intact() for target in targets):
                raise AssertionError(f"{way}: the memory of a process has changed")
    case: dict[str, Any] = {
        "processes": len(pids),
        "parallel": parallel,
        "cache": str(feature_cache().state),
    }
    rows = []
    for (way, what), result in taken.items():
        rows.append(row(what, "s", result, by=way, **case))
        rows.append(row(f"{what}: processor time", "s", work[way, what], by=way, **case))
        rows.append(row(f"{what}: our own", "s", own[way, what], by=way, **case))
    for what in ways[OURS]:
        pairs = zip(taken[THEIRS, what], taken[OURS, what], strict=True)
        ratios = [theirs / ours for theirs, ours in pairs]
        rows.append(row(f"{what}: times faster", "x", ratios, **case))
    return rows


if __name__ == "__main__":
    main("many", __doc__ or "", measure)
