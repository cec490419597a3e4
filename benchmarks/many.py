"""Many processes dumped and restored at once, against the ``criu`` program under ``xargs -P``."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from pycriu_native import CriuOpts, WarmWorkers, dump_many, restore_many
from pycriu_native._program import find_program

from .common import Row, Target, adopt, main, row, scratch


def measure(quick: bool) -> list[Row]:
    """64 small processes, by so many at a time as there are processors, twice, four times that."""
    adopt()
    count, rounds = (16, 2) if quick else (64, 4)
    rows: list[Row] = []
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


def _spent() -> float:
    """Seconds of processor that our children, and theirs, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _reap(targets: list[Target]) -> None:
    for target in targets:
        if target.process.returncode is None:
            target.reap()
        else:
            os.waitpid(target.pid, 0)


def _measure(directory: Path, targets: list[Target], parallel: int, rounds: int) -> list[Row]:
    taken: dict[tuple[str, str], list[float]] = {}
    work: dict[tuple[str, str], list[float]] = {}
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
        program, where = shlex.quote(find_program()), shlex.quote(str(directory))
        line = {
            "dump": f"{program} dump -t {{}} -D {where}/images-{{}} -o dump.log",
            "restore": f"{program} restore -d -D {where}/images-{{}} -o restore.log",
        }[what]
        subprocess.run(
            ["xargs", "-P", str(parallel), "-I", "{}", "sh", "-c", line],
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
        for _ in range(rounds):
            for name, body in ways.items():
                for pid in pids:
                    shutil.rmtree(images(pid), ignore_errors=True)
                    images(pid).mkdir()
                warm.wait_until_ready(10)
                for what in ("dump", "restore"):
                    before, started = _spent(), time.perf_counter()
                    body(what)
                    taken.setdefault((name, what), []).append(time.perf_counter() - started)
                    work.setdefault((name, what), []).append(_spent() - before)
                    if what == "dump":
                        _reap(targets)
                if not all(target.is_intact() for target in targets):
                    raise AssertionError(f"{name}: a process is not what it was")
    case = {"processes": len(pids), "parallel": parallel}
    rows = []
    for (name, what), found in taken.items():
        rows.append(row(what, "s", found, "", by=name, **case))
        rows.append(row(f"{what}: processor time", "s", work[name, what], "", by=name, **case))
    for what in ("dump", "restore"):
        base = taken["the criu program", what]
        for name in ("warm workers", "workers of their own"):
            ratios = [theirs / ours for theirs, ours in zip(base, taken[name, what], strict=True)]
            goal = "goal: 1 or more, 1.3 where the start is what costs"
            rows.append(row(f"{what}: times faster", "x", ratios, goal, by=name, **case))
    return rows


if __name__ == "__main__":
    main("many", __doc__ or "", measure)
