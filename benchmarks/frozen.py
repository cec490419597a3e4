"""The time for which a process with much memory, which it writes to, is stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from pycriu_native import (
    CriuOpts,
    DumpResult,
    DumpStatistics,
    Round,
    WorkerPool,
    dump,
    dump_iters,
    feature_check,
)

from .common import Row, Target, main, note, row, scratch

PARTS = ("freezing_time", "frozen_time", "memdump_time", "memwrite_time")
ROUNDS = 3
"""Pre-dumps before the dump."""


def measure(quick: bool) -> list[Row]:
    """Dumps that leave the process running: CRIU's statistics, and the stop seen by the process."""
    times, sizes = (3, (256,)) if quick else (7, (256, 1024))
    ways: dict[str, Callable[[int, Path, WorkerPool], list[tuple[str, DumpResult]]]]
    ways = {"plain": _plain}
    rows: list[Row] = []
    shares = [1]
    if feature_check().mem_track:
        ways["rounds"] = _rounds
        shares.append(16)  # pre-dumps help if a part of the memory is written to
    else:
        why = "this kernel does not track changed memory (soft-dirty): see the results of the guest"
        rows.append(note("pre-dump rounds", why))
    with scratch("/dev/shm") as directory, WorkerPool(1) as warm:
        for mib, share in [(mib, share) for mib in sizes for share in shares]:
            target = Target(directory, mib, writes=share, name=f"writer-{mib}-{share}")
            where = "" if share == 1 else f", writing to a {share}th of it"
            taken: dict[tuple[str, str], list[float]] = {}

            def add(by: str, what: str, value: float) -> None:
                taken.setdefault((by, what), []).append(value)  # noqa: B023

            images = directory / "images"
            try:
                for _ in range(times):
                    for way in ways.values():
                        target.request_report()
                        result = way(target.pid, images, warm)
                        felt = float(target.request_report()[2]) * 1e3
                        for by, done in result:
                            assert isinstance(done.statistics, DumpStatistics)
                            for part in PARTS:
                                add(by, part, getattr(done.statistics, part) / 1e3)
                            add(by, "pages written", done.statistics.pages_written or 0)
                            add(by, "whole call", done.duration * 1e3)
                        add(result[-1][0], "felt by the process", felt)
                        shutil.rmtree(images)
            finally:
                target.end()
            rows += [
                row(what, "" if what == "pages written" else "ms", samples, by=by + where, MiB=mib)
                for (by, what), samples in taken.items()
            ]
    return rows


def _plain(pid: int, images: Path, via: WorkerPool) -> list[tuple[str, DumpResult]]:
    opts = CriuOpts(images_directory=images, leave_running=True)
    return [("a plain dump", dump(pid, opts, via=via))]


def _rounds(pid: int, images: Path, via: WorkerPool) -> list[tuple[str, DumpResult]]:
    opts = CriuOpts(images_directory=images, leave_running=True)

    def should_continue(round: Round) -> bool:
        return round.number < ROUNDS

    done = dump_iters(pid, opts, should_continue, via=via)
    result = [(f"pre-dump {each.number}", each.result) for each in done.rounds]
    return [*result, (f"the dump after {ROUNDS} pre-dumps", done.final)]


if __name__ == "__main__":
    main("frozen", __doc__ or "", measure)
