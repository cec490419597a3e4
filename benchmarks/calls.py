"""One call by each library or program, and the time of its steps."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pycriu_native import CriuOpts, Worker, WorkerPool, dump, version
from pycriu_native._calls import completion, exchange, requirements, run, verbs
from pycriu_native._transport import worker
from pycriu_native._transport.program import find_program
from pycriu_native._wire import requests
from pycriu_native._wire.messages import NOTIFY, REQUEST_TYPES, decode_response, encode

from .call_limit import measure_reduced
from .common import (
    PYCRIU_DUMPS,
    PYCRIU_MISSING,
    Row,
    Target,
    build,
    criu,
    in_log,
    in_turns,
    main,
    note,
    plain,
    pycriu,
    row,
    scratch,
    timed,
)

PYCRIU = f"""
import os, sys, time
program, pid, directory, times = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
{PYCRIU_DUMPS}"""


def measure(quick: bool) -> list[Row]:
    """Dump a minimal process that is left running."""
    times = 12 if quick else 60
    with scratch("/dev/shm") as directory:
        target = Target(directory)
        try:
            return [
                *_ways(target, directory, times),
                *_beyond(target, directory, times),
                *_nothing(target, directory, times),
                *_parts(target, directory, times),
            ]
        finally:
            target.end()


def _prints(words: list[str]) -> float:
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _ways(target: Target, directory: Path, times: int) -> list[Row]:
    images = directory / "images"
    images.mkdir()
    opts = CriuOpts(images_directory=images, leave_running=True)
    program, pid = find_program(), target.pid
    command = ["dump", "-t", pid, "-D", images, "-o", "dump.log", "-R"]
    with WorkerPool(2) as warm:

        def rested(body: Callable[[], object]) -> Callable[[], float]:
            """Call with a ready pool: the calls do not come in one burst."""

            def sample() -> float:
                warm.wait_until_ready(10)
                time.sleep(0.005)  # the worker then waits for its request
                return timed(body)

            return sample

        versions = {
            "a worker of a pool": rested(lambda: version(via=warm)),
            "a new worker": lambda: timed(version),
            "C over libcriu": lambda: _prints([str(plain()), *_small(program, 0, images)]),
            "the criu program": lambda: timed(lambda: criu("--version")),
        }
        dumps = {
            "a worker of a pool": rested(lambda: dump(pid, opts, via=warm)),
            "a new worker": lambda: timed(lambda: dump(pid, opts)),
            "C over libcriu": lambda: _prints([str(plain()), *_small(program, pid, images)]),
            "the criu program": lambda: timed(lambda: criu(*command)),
        }
        theirs = pycriu()
        if theirs is not None:
            dumps["pycriu"] = lambda: _prints(
                [*theirs, "-c", PYCRIU, program, str(pid), str(images), "1"]
            )
        rows = [
            row(what, "ms", samples, by=way)
            for what, ways in (("version", versions), ("dump, left running", dumps))
            for way, samples in in_turns(ways, times).items()
        ]
    if theirs is None:
        rows.append(note("pycriu", PYCRIU_MISSING))
    if not target.is_intact():
        raise AssertionError("the target has changed")
    return rows


def _small(program: str, pid: int, images: Path) -> list[str]:
    return ["1", "1", "0", program, str(pid), str(images), "1"]


def _beyond(target: Target, directory: Path, times: int) -> list[Row]:
    """The wall time of a call minus the time in CRIU's log; each call has a new directory."""
    rows = []
    with WorkerPool(2) as warm:
        for name, via in (("a worker of a pool", warm), ("a new worker", Worker())):
            beyond = []
            for number in range(times):
                images = directory / f"{type(via).__name__}-{number}"
                opts = CriuOpts(images_directory=images, leave_running=True, log_level=4)
                warm.wait_until_ready(10)
                time.sleep(0.01)
                taken = timed(lambda via=via, opts=opts: dump(target.pid, opts, via=via))  # type: ignore[misc]
                beyond.append(taken - in_log(images / "dump.log"))
            goal = "goal: at most 1" if via is warm else ""
            rows.append(row("beyond CRIU's log", "ms", beyond, goal, by=name))
    rows += measure_reduced(target, directory, times)
    rows.append(_alone(target, directory, times))
    rows += _cold(target, directory, times)
    return rows


ALONE = "its request alone"
"""The name of the way that consists only of a request and its notifications."""


def _alone(target: Target, directory: Path, times: int) -> Row:
    """CRIU's part: a request to a waiting worker, with immediate responses to notifications."""
    yes = encode("request", {"type": NOTIFY, "notify_success": True})
    beyond = []
    for number in range(times):
        images = directory / f"alone-{number}"
        images.mkdir(0o700)
        fd = os.open(images, os.O_RDONLY)
        connection = Worker().connect()
        time.sleep(0.02)
        opts: dict[str, Any] = {
            "images_dir_fd": fd, "pid": target.pid, "leave_running": True, "log_level": 4,
            "log_file": "dump.log", "notify_scripts": True,
        }  # fmt: skip
        request = encode("request", {"type": REQUEST_TYPES["dump"], "opts": opts})
        started = time.perf_counter()
        connection.sock().sendall(request)
        response = decode_response(connection.sock().recv(65536))
        while response is not None and response["type"] == NOTIFY:
            connection.sock().sendall(yes)
            response = decode_response(connection.sock().recv(65536))
        taken = (time.perf_counter() - started) * 1e3
        connection.wait()
        os.close(fd)
        if response is None or not response["success"]:
            raise RuntimeError(f"CRIU did not dump: {response}")
        beyond.append(taken - in_log(images / "dump.log"))
    return row("beyond CRIU's log", "ms", beyond, by=ALONE)


def _cold(target: Target, directory: Path, times: int) -> list[Row]:
    """The same checks after a dump, which fills the processor's caches, and repeated at once."""
    taken: dict[str, list[float]] = {"after a dump": [], "at once again": []}
    with WorkerPool(2) as warm:
        for number in range(times):
            opts = CriuOpts(images_directory=directory / f"cold-{number}", leave_running=True)
            warm.wait_until_ready(10)
            time.sleep(0.01)
            for samples in taken.values():
                again = replace(opts)  # a new value, without stored results of checks
                body = partial(verbs.dump_request, target.pid, again, warm, None, None)
                samples.append(timed(body))
            dump(target.pid, opts, via=warm)
    return [row("all checks", "ms", samples, by=when) for when, samples in taken.items()]


def _nothing(target: Target, directory: Path, times: int) -> list[Row]:
    """A call to a program that only sends CRIU's messages: the time of this library's part,
    measured after a dump, which fills the processor's caches, and repeated at once.
    """
    images = directory / "nothing"
    taken: dict[str, list[float]] = {"after a dump": [], "at once again": []}
    env = {"INVENTORY": str(images / "inventory.img")}
    with WorkerPool(2) as warm, WorkerPool(2, program=build("nothing"), env=env) as idle:
        for number in range(times):
            warm.wait_until_ready(10)
            real = CriuOpts(images_directory=directory / f"real-{number}", leave_running=True)
            dump(target.pid, real, via=warm)
            time.sleep(0.01)
            for samples in taken.values():
                shutil.rmtree(images, ignore_errors=True)
                idle.wait_until_ready(10)
                opts = CriuOpts(images_directory=images, leave_running=True)
                body = partial(dump, target.pid, opts, via=idle)
                samples.append(timed(body))
    return [row("all that is ours", "ms", samples, by=when) for when, samples in taken.items()]


PARTS: tuple[tuple[str, Any, str], ...] = (
    ("options are checked", requirements, "check"),
    ("libcriu's options are filled", run, "fill"),
    ("a worker is got", worker.Worker, "connect"),
    ("the conversation", exchange.Exchange, "run"),
    ("libcriu reads the response", requests.LibcriuCall, "finish"),
    ("the worker ends and is reaped", worker.WorkerConnection, "wait"),
    ("statistics are read", completion, "statistics_of"),
)


def _parts(target: Target, directory: Path, times: int) -> list[Row]:
    """The same dump, with the time of each step."""
    opts = CriuOpts(images_directory=directory / "images", leave_running=True, log_level=4)
    rows = []
    with WorkerPool(2) as warm:
        for name, via in (("a worker of a pool", warm), ("a new worker", Worker())):
            taken: dict[str, list[float]] = {}
            originals = [(owner, method, getattr(owner, method)) for _, owner, method in PARTS]
            connect = WorkerPool.connect
            try:
                for step, owner, method in PARTS:
                    _clock(owner, method, step, taken)
                _clock(WorkerPool, "connect", "a worker is got", taken)
                whole, logged = [], []
                for _ in range(times):
                    warm.wait_until_ready(10)
                    time.sleep(0.01)
                    for steps in taken.values():
                        steps.append(0.0)
                    whole.append(timed(lambda via=via: dump(target.pid, opts, via=via)))  # type: ignore[misc]
                    logged.append(in_log(directory / "images" / "dump.log"))
            finally:
                for owner, method, original in originals:
                    setattr(owner, method, original)
                WorkerPool.connect = connect  # type: ignore[method-assign]
            rows.append(row("whole call", "ms", whole, by=name))
            rows.append(row("CRIU, by its log", "ms", logged, by=name))
            for step, steps in taken.items():
                rows.append(row(step, "ms", steps[1:] or steps, by=name))
    return rows


def _clock(owner: Any, method: str, step: str, taken: dict[str, list[float]]) -> None:
    original = getattr(owner, method)

    def clocked(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*arguments, **named)
        finally:
            # The sum, if a call executes a step twice.
            steps = taken.setdefault(step, [0.0])
            steps[-1] += (time.perf_counter() - started) * 1e3

    setattr(owner, method, clocked)


if __name__ == "__main__":
    main("calls", __doc__ or "", measure)
