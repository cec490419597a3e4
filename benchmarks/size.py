"""The time of a call by the size of its caller: memory, threads, descriptors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pycriu_native import CriuOpts, dump
from pycriu_native._transport.program import find_program

from .common import (
    HERE,
    PYCRIU_DUMPS,
    PYCRIU_MISSING,
    Row,
    Target,
    main,
    note,
    plain,
    pycriu,
    row,
    scratch,
    with_run_on,
)

MEMORY = (16, 1024, 8192)
"""The memory of the caller in MiB."""
THREADS = (1, 64)
DESCRIPTORS = (10, 10000)

BALLAST = """
import mmap, os, resource, sys, threading, time
mib, threads, descriptors, program, pid, directory, times = sys.argv[1:8]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
memory = mmap.mmap(-1, int(mib) * 2**20 + 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, int(mib) * 2**20, 4096):
    memory[at] = 1
over = threading.Event()
for _ in range(int(threads) - 1):
    threading.Thread(target=over.wait, daemon=True).start()
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(int(descriptors))]
pid, times = int(pid), int(times)
"""

OURS = """
from pycriu_native import CriuOpts, WorkerPool, Worker, dump, version
opts = CriuOpts(images_directory=directory, leave_running=True)
warm = WorkerPool(1, program=program) if sys.argv[8] == "warm" else None
via = warm or Worker(program=program)
for _ in range(times):
    if warm:
        warm.wait_until_ready(10)
        time.sleep(0.01)
    started = time.perf_counter()
    dump(pid, opts, via=via) if pid else version(via=via)
    print((time.perf_counter() - started) * 1e3)
"""


def run(
    words: list[str], size: tuple[int, int, int], pid: int, images: Path, times: int, *more: str
) -> list[float]:
    """The samples of a caller of this size, without the first call."""
    mib, threads, descriptors = size
    arguments = [str(mib), str(threads), str(descriptors), find_program(), str(pid), str(images)]
    done = subprocess.run(
        [*words, *arguments, str(times + 1), *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent,
    )
    if done.returncode:
        raise RuntimeError(f"{words}: {done.returncode} {done.stderr}")
    return [float(line) for line in done.stdout.split()][1:]


def measure(quick: bool) -> list[Row]:
    """Measure with CRIU's feature cache: probing the kernel takes a long and varying time."""
    rows: list[Row] = with_run_on("tmpfs", "size", int(quick))
    return rows


def inside(quick: int) -> None:
    """Print the rows of this mount namespace as JSON."""
    print(json.dumps(_measure(bool(quick))))


def _measure(quick: bool) -> list[Row]:
    """Run rounds, in each of which every caller takes its samples."""
    rounds, times = (3, 4) if quick else (8, 6)  # many rounds, because the load varies over time
    memory = MEMORY[:2] if quick else MEMORY
    sizes = [(mib, 1, 10) for mib in memory]
    sizes += [(16, threads, 10) for threads in THREADS[1:]]
    sizes += [(16, 1, descriptors) for descriptors in DESCRIPTORS[1:]]
    python = [sys.executable, "-c"]
    callers = {
        "a worker of a pool": ([*python, BALLAST + OURS], "warm"),
        "a new worker": ([*python, BALLAST + OURS], "fresh"),
        "C over libcriu": ([str(plain())], ""),
    }
    theirs = pycriu()
    if theirs is not None:
        callers["pycriu"] = ([*theirs, "-c", BALLAST + PYCRIU_DUMPS], "")
    rows = []
    with scratch("/dev/shm") as directory:
        images = directory / "images"
        images.mkdir()
        target = Target(directory)
        try:
            first = CriuOpts(images_directory=images, leave_running=True)
            dump(target.pid, first)  # CRIU writes its feature cache
            for what, pid in (("version", 0), ("dump, left running", target.pid)):
                taken: dict[tuple[str, tuple[int, int, int]], list[float]] = {}
                for _ in range(rounds):
                    for size in sizes:
                        for name, (words, more) in callers.items():
                            if pid == 0 and name == "pycriu":
                                continue
                            result = run(words, size, pid, images, times, *([more] if more else []))
                            taken.setdefault((name, size), []).extend(result)
                for (name, (mib, threads, descriptors)), samples in taken.items():
                    case = {"by": name, "MiB": mib, "threads": threads}
                    rows.append(row(what, "ms", samples, "", **case, descriptors=descriptors))
            if not target.is_intact():
                raise AssertionError("the target has changed")
        finally:
            target.end()
    if theirs is None:
        rows.append(note("pycriu", PYCRIU_MISSING))
    return rows


if __name__ == "__main__":
    main("size", __doc__ or "", measure)
