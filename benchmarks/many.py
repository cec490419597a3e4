"""Many processes dumped and restored at once, against the ``criu`` program under ``xargs -P``."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

from pycriu_native import CriuOpts, WarmWorkers, dump_many, restore_many
from pycriu_native._program import find_program

from .common import Row, Target, adopt, main, row, scratch


def measure(quick: bool) -> list[Row]:
    """64 small processes, by so many at a time as there are processors, and four times that."""
    adopt()
    count, rounds = (16, 3) if quick else (64, 5)
    rows: list[Row] = [_start()]
    processors = len(os.sched_getaffinity(0))
    with scratch("/dev/shm") as directory:
        targets = [Target(directory, 1, name=f"t{number}") for number in range(count)]
        try:
            for parallel in (processors, 4 * processors):
                rows += _measure(directory, targets, parallel, rounds)
        finally:
            for target in targets:
                target.end()
    return rows


WHOSE = (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)


def _spent(whose: int) -> float:
    """Seconds of processor that our children and theirs, or we ourselves, have used."""
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def _start() -> Row:
    """What it takes to start CRIU and to end it again."""
    samples = []
    for _ in range(20):
        before = _spent(resource.RUSAGE_CHILDREN)
        subprocess.run([find_program(), "--version"], stdout=subprocess.DEVNULL, check=True)
        samples.append((_spent(resource.RUSAGE_CHILDREN) - before) * 1e3)
    return row("the start of CRIU: processor time", "ms", samples)


def _reap(targets: list[Target]) -> None:
    for target in targets:
        if target.process.returncode is None:
            target.reap()
        else:
            os.waitpid(target.pid, 0)


def _measure(directory: Path, targets: list[Target], parallel: int, rounds: int) -> list[Row]:
    taken: dict[tuple[str, str], list[float]] = {}
    work: dict[tuple[str, str], list[float]] = {}
    ours_too: dict[tuple[str, str], list[float]] = {}
    pids = [target.pid for target in targets]

    def images(pid: int) -> Path:
        return directory / f"images-{pid}"

    def opts(pid: int) -> CriuOpts:
        return CriuOpts(images_directory=images(pid))

    def ours(via: WarmWorkers | None, what: str) -> None:
        if what == "dump":
            for done in dump_many(pids, opts, via=via, parallel=parallel):
                done.get()
        else:
            for back in restore_many(map(opts, pids), via=via, parallel=parallel):
                back.get()

    def theirs(what: str) -> None:
        words = {
            "dump": ["dump", "-t", "{}", "-o", "dump.log"],
            "restore": ["restore", "-d", "-o", "restore.log"],
        }[what]
        xargs = ["xargs", "-P", str(parallel), "-I", "{}"]
        subprocess.run(
            [*xargs, find_program(), *words, "-D", f"{directory}/images-{{}}"],
            input="\n".join(map(str, pids)),
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    with WarmWorkers(parallel) as warm:
        ways = {
            "warm workers": lambda what: ours(warm, what),
            "workers of their own": lambda what: ours(None, what),
            "the criu program": theirs,
        }
        for number in range(rounds):
            for name in [*ways, *ways][number % len(ways) :][: len(ways)]:  # each is first once
                body = ways[name]
                for pid in pids:
                    shutil.rmtree(images(pid), ignore_errors=True)
                    images(pid).mkdir()
                warm.wait_until_ready(10)
                for what in ("dump", "restore"):
                    children, own = map(_spent, WHOSE)
                    started = time.perf_counter()
                    body(what)
                    taken.setdefault((name, what), []).append(time.perf_counter() - started)
                    work.setdefault((name, what), []).append(_spent(WHOSE[0]) - children)
                    ours_too.setdefault((name, what), []).append(_spent(WHOSE[1]) - own)
                    if what == "dump":
                        _reap(targets)
                if not all(target.is_intact() for target in targets):
                    raise AssertionError(f"{name}: a process is not what it was")
    case = {"processes": len(pids), "parallel": parallel}
    rows = []
    for (name, what), found in taken.items():
        rows.append(row(what, "s", found, "", by=name, **case))
        rows.append(row(f"{what}: processor time", "s", work[name, what], "", by=name, **case))
        rows.append(row(f"{what}: our own", "s", ours_too[name, what], "", by=name, **case))
    for what in ("dump", "restore"):
        base = taken["the criu program", what]
        for name in ("warm workers", "workers of their own"):
            ratios = [theirs / ours for theirs, ours in zip(base, taken[name, what], strict=True)]
            rows.append(row(f"{what}: times faster", "x", ratios, "", by=name, **case))
    return rows


if __name__ == "__main__":
    main("many", __doc__ or "", measure)
