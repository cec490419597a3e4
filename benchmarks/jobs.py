"""The cost of a job's checkpoints: slow-down, time of the stop, and size.

A job of fixed work writes to all of its memory. Its wall time with checkpoints at a short interval,
minus the wall time without them, divided by their number, is the cost of one checkpoint; the
slow-down at an interval of 10 minutes is calculated from it. DMTCP runs the same job if
``dmtcp_launch`` is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pycriu_native.jobs import Job, State
from pycriu_native.jobs.directory import JobDirectory

from .common import QUIET, Row, main, note, row, scratch

INTERVAL = 600.0
"""The checkpoint interval, in seconds, for which the slow-down is calculated."""

CODE = """
import os, sys, time
mib, steps = map(int, sys.argv[1:])
memory = bytearray(os.urandom(1 << 20) * mib)
since = time.monotonic()
for step in range(steps):
    for at in range(step % 4096, len(memory), 4096):
        memory[at] = step & 255
"""
"""Work with a constant duration."""

SECONDS = 12
"""The approximate duration of the work."""


def command(mib: int, steps: int) -> list[str]:
    """The job."""
    return [sys.executable, "-c", CODE, str(mib), str(steps)]


def seconds(words: list[str]) -> float:
    """The wall time of a command, which must succeed."""
    started = time.monotonic()
    subprocess.run(words, check=True, **QUIET)
    return time.monotonic() - started


def measure(quick: bool) -> list[Row]:
    """Run a job in turns without checkpoints, with those of this library, and with DMTCP's."""
    return [*of(64, 1)] if quick else [*of(256, 3), *of(1024, 3)]


def of(mib: int, times: int) -> Iterator[Row]:
    """The rows of one size."""
    few = seconds(command(mib, 1))
    each = max(1e-4, (seconds(command(mib, 11)) - few) / 10)
    job = command(mib, max(1, round(SECONDS / each)))
    plain: list[float] = []
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    why = "" if shutil.which("dmtcp_launch") else "dmtcp_launch is not installed"
    for _ in range(times):
        plain.append(seconds(job))
        with scratch("/var/tmp") as directory:
            add(ours, with_job(directory, job, plain[-1]))
        if why == "":
            with scratch("/var/tmp") as directory:
                why = with_dmtcp(directory, job, plain[-1], theirs)
    for way, costs_of_way in (("pycriu_native", ours), ("DMTCP", theirs)):
        if not costs_of_way:
            yield note("costs of a checkpoint", why, by=way, MiB=mib)
        for what, samples in costs_of_way.items():
            unit = {"slow-down at 10 minutes": "%", "bytes": "MiB"}.get(what, "s")
            yield row(what, unit, samples, by=way, MiB=mib)


def add(into: dict[str, list[float]], sample: dict[str, float]) -> None:
    """Take one more sample of each."""
    for what, value in sample.items():
        into.setdefault(what, []).append(value)


def costs(wall: float, plain: float, count: int) -> dict[str, float]:
    """The results of a run with a number of checkpoints."""
    if not count:
        raise RuntimeError("no checkpoint was taken: the job was too short")
    cost = (wall - plain) / count
    return {"wall time of a checkpoint": cost, "slow-down at 10 minutes": cost / INTERVAL * 100}


def with_job(directory: Path, job: list[str], plain: float) -> dict[str, float]:
    """Run the job under the supervisor."""
    place = directory / "job"
    started = time.monotonic()
    result = Job(place, job, every=max(1, plain / 3), keep=1, incremental=0).run()
    wall = time.monotonic() - started
    if result.state is not State.ENDED or result.exit_code:
        raise RuntimeError(f"the job ended with {result}")
    status = JobDirectory(place).status()
    return {
        **costs(wall, plain, status.checkpoints),
        "frozen": status.last_frozen or 0.0,
        "bytes": (status.last_bytes or 0) / (1 << 20),
    }


def with_dmtcp(directory: Path, job: list[str], plain: float, into: dict[str, list[float]]) -> str:
    """Run the job under DMTCP, without compression as with CRIU. Returns the reason if it fails."""
    interval = max(1, round(plain / 3))
    words = ["dmtcp_launch", "--new-coordinator", "--no-gzip", "--interval", str(interval)]
    started = time.monotonic()
    with open(directory / "log", "wb") as output:
        done = subprocess.run(
            [*words, "--ckptdir", str(directory), *job],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    wall = time.monotonic() - started
    if done.returncode:
        last = (directory / "log").read_text(errors="replace").strip().splitlines()[-1:]
        return f"DMTCP ended with {done.returncode}: {' '.join(last)}"
    images = [path.stat().st_size for path in directory.glob("ckpt_*.dmtcp")]
    count = int(wall / interval)  # DMTCP does not report the number
    add(into, {**costs(wall, plain, count), "bytes": sum(images) / (1 << 20)})
    return ""


if __name__ == "__main__":
    main("jobs", "the cost of a job's checkpoints", measure)
