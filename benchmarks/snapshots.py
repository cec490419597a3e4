"""The time to the first response of a program: cold, forked, and started from a snapshot.

Each program is started in each way in turn, and then several times at once. docs/performance.md has
goals for the rows ``ratio``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

from pycriu_native import CriuError, CriuOpts, OptionError, Verb, WorkerPool
from pycriu_native._transport.program import find_program
from pycriu_native.snapshots import Snapshot
from pycriu_native.snapshots.namespaces import Namespaces
from pycriu_native.snapshots.restore import PID_NAMESPACE

from .common import HERE, Row, in_turns, main, memory_of, note, row, scratch
from .snapshot_programs import (
    COLD,
    CRIU_RESTORE,
    FORKED,
    PLAIN,
    POOLED,
    PROGRAMS,
    SHARED,
    WITH_NAMESPACES,
    ZYGOTE,
    Program,
    check_answer,
    read_answer,
)

FORKING = """
import multiprocessing, sys, time
import bench_module
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["bench_module"])
while (line := sys.stdin.readline()):
    ours, theirs = context.Pipe()
    process = context.Process(target=bench_module.answer, args=(theirs.send_bytes,))
    process.start()
    print(ours.recv_bytes().decode(), end="", flush=True)
    sys.stdin.readline()
    process.kill()
    process.join()
    print("ended", flush=True)
"""
"""A separate program, because forked processes import the main module again."""

AT_ONCE = (1, 4, 16, 64)
THREADS = 8
"""The number of concurrent starts."""
SMALL = 16
"""The number of copies that run when their memory is measured."""

Started = contextlib.AbstractContextManager[subprocess.Popen[bytes]]


class Ways:
    """The ways to start one program; each returns the milliseconds to its first response."""

    def __init__(self, program: Program, directory: Path, owned: ExitStack) -> None:
        self.command = program.command(directory)
        # A program with threads, such as those of OpenBLAS, cannot be a zygote.
        path = os.pathsep.join(
            [str(directory), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        self.environment = {**os.environ, **threads, "PYTHONPATH": path}
        self.snapshot = owned.enter_context(
            Snapshot.take(self.command, directory / "snapshot", env=self.environment)
        )
        self.pool = owned.enter_context(WorkerPool(1))
        streams: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE}
        start = self.snapshot.start
        self.starts: dict[str, Callable[[], Started]] = {
            COLD: lambda: subprocess.Popen(self.command, **streams, env=self.environment),
            PLAIN: lambda: start(**streams, share_memory=False),
            SHARED: lambda: start(**streams, share_memory=True),
            POOLED: lambda: start(**streams, via=self.pool),
        }
        self.with_namespaces: list[float] = []
        self.missing: dict[str, str] = {}
        self.by_turn: dict[str, Callable[[], float]] = {CRIU_RESTORE: self.restore}
        if program.modules:
            words = [sys.executable, "-c", FORKING]
            self.forking = owned.enter_context(
                subprocess.Popen(words, stdin=PIPE, stdout=PIPE, bufsize=0, env=self.environment)
            )
            self.by_turn[FORKED] = self.fork
        else:
            self.missing[FORKED] = "it forks Python programs only"
        try:
            zygote = owned.enter_context(self.snapshot.zygote())
        except CriuError as error:
            rules = [each.rule for each in error.problems] if isinstance(error, OptionError) else []
            self.missing[ZYGOTE] = "; ".join(rules) or str(error)
        else:
            self.starts[ZYGOTE] = lambda: zygote.start(**streams)
        self.spent: dict[str, list[float]] = {}
        for way in self.starts:
            self.by_turn[way] = lambda way=way: self.start(way)  # type: ignore[misc]

    def start(self, way: str) -> float:
        """Start a copy; ``spent`` is the processor time until the copy has ended."""
        before = processor_time()
        since = time.perf_counter()
        with self.starts[way]() as process:
            assert process.stdout is not None
            read_answer(process.stdout)
            taken = (time.perf_counter() - since) * 1e3
            process.kill()
        self.spent.setdefault(way, []).append(processor_time() - before)
        return taken

    def fork(self) -> float:
        """multiprocessing's fork server, with all modules imported."""
        assert self.forking.stdin is not None
        assert self.forking.stdout is not None
        since = time.perf_counter()
        self.forking.stdin.write(b"start\n")
        read_answer(self.forking.stdout)
        taken = (time.perf_counter() - since) * 1e3
        self.forking.stdin.write(b"end\n")
        self.forking.stdout.readline()
        return taken

    def restore(self) -> float:
        """The criu program with the same images and options, in namespaces that exist."""
        record = self.snapshot.record
        with ExitStack() as owned:
            began = time.perf_counter()
            namespaces = owned.enter_context(Namespaces())
            namespaces.wait_until_ready()
            pid_namespace = namespaces.open("pid")
            for_namespaces = (time.perf_counter() - began) * 1e3
            owned.callback(os.close, pid_namespace)
            reader, writer = os.pipe()
            answers = owned.enter_context(open(reader, "rb"))
            inherited = [(pid_namespace, PID_NAMESPACE)]
            start = b'{"number": 1, "arguments": null, "environment": null, "variables": null, '
            start += b'"directory": null, "seed": ""}\n'
            line, end = socket.socketpair()
            owned.enter_context(end).sendall(start)
            held, input_end = os.pipe()  # what would end at the end of its input goes on
            owned.callback(os.close, input_end)
            null = os.open(os.devnull, os.O_RDWR)
            for fd, key in zip(
                (line.detach(), held, writer, null),
                (record.guest_key, *record.stream_keys),
                strict=True,
            ):
                assert key is not None
                inherited.append((fd, key))
            work = owned.enter_context(scratch("/dev/shm"))
            opts = CriuOpts(
                images_directory=str(self.snapshot.directory),
                work_directory=str(work),
                inherit_fds=inherited,
                join_ns=[("mnt", namespaces.file("mnt"))],
                log_file="log",
            )
            words = opts.to_argv(Verb.RESTORE)
            fds = [fd for fd, _ in inherited]
            since = time.perf_counter()
            done = subprocess.Popen(
                [find_program(None), *words[1:]],
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
                pass_fds=fds,
            )
            owned.callback(done.wait)
            for fd in fds[1:]:
                os.close(fd)
            answered = answers.readline()
            if not answered:
                raise RuntimeError((work / "log").read_text())  # the log of CRIU
            check_answer(answered)
            taken = (time.perf_counter() - since) * 1e3
            namespaces.end()
            self.with_namespaces.append(for_namespaces + taken)
            return taken

    @contextlib.contextmanager
    def at_once(self, way: str, number: int) -> Iterator[tuple[list[float], list[int]]]:
        """Start a number of copies: the milliseconds to each response, and their pids."""
        began = time.perf_counter()

        def answered(_: int) -> tuple[float, subprocess.Popen[bytes]]:
            process = owned.enter_context(self.starts[way]())
            owned.callback(process.kill)
            assert process.stdout is not None
            read_answer(process.stdout)
            return (time.perf_counter() - began) * 1e3, process

        with ExitStack() as owned:
            with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
                done = list(threads.map(answered, range(number)))
            yield [taken for taken, _ in done], [process.pid for _, process in done]


def processor_time() -> float:
    """The processor time of this process and of its children that have ended, in milliseconds."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both) * 1e3


def one_start(ways: Ways, program: str, times: int) -> list[Row]:
    """Measure each way in turn."""
    in_turns(ways.by_turn, 1)  # fills caches, and starts the fork servers
    ways.spent.clear()
    ways.with_namespaces.clear()
    taken = in_turns(ways.by_turn, times)
    taken[WITH_NAMESPACES] = ways.with_namespaces
    rows = [row("first answer", "ms", taken[way], program=program, way=way) for way in taken]
    for way, spent in ways.spent.items():
        rows.append(row("processor time of a start", "ms", spent, program=program, way=way))
    for way, reason in ways.missing.items():
        rows.append(note("first answer", f"not measured: {reason}", program=program, way=way))
    middle = {way: statistics.median(each) for way, each in taken.items()}
    compared = (
        (COLD, SHARED),
        (PLAIN, CRIU_RESTORE),
        (PLAIN, WITH_NAMESPACES),
        (ZYGOTE, FORKED),
    )
    for way, other in compared:
        if way in middle and other in middle:
            ratio = [middle[way] / middle[other]]
            rows.append(row("ratio", "times", ratio, program=program, way=f"{way} / {other}"))
    return rows


def many_starts(ways: Ways, program: str, numbers: tuple[int, ...]) -> list[Row]:
    """Measure concurrent starts by eight threads: starts per second, and memory of each copy."""
    rows: list[Row] = []
    room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for number in numbers:
        for way in (PLAIN, SHARED, ZYGOTE):
            case: dict[str, Any] = {"program": program, "way": way, "copies": number}
            if way not in ways.starts:
                continue
            if way == PLAIN and number * ways.snapshot.size() > room / 2:
                rows.append(note("starts in a second", "not measured: too much memory", **case))
                continue
            before = processor_time()
            with ways.at_once(way, number) as (answers, pids):
                memory = [memory_of(pid) for pid in pids]
            spent = (processor_time() - before) / number
            rows.append(row("first answer of each", "ms", answers, **case))
            rows.append(row("starts in a second", "1/s", [number / max(answers) * 1e3], **case))
            rows.append(row("processor time of each", "ms", [spent], **case))
            if number == SMALL:
                private, proportional = zip(*memory, strict=True)
                rows.append(row("private memory of each", "MiB", private, **case))
                rows.append(row("proportional share of each", "MiB", proportional, **case))
    return rows


def measure(quick: bool) -> list[Row]:
    """Measure each program."""
    # benchmarks/page.py has the numbers of one comparison.
    reason = "not measured: it needs Python 3.12, crit, and sudo with closefrom_override"
    rows: list[Row] = [note("first answer", reason, way="habemus-papadum-criu")]
    for program in PROGRAMS:
        if lacking := program.lacking():
            reason = f"not measured: {', '.join(lacking)} not installed"
            rows.append(note("first answer", reason, program=program.name))
            continue
        try:
            with scratch("/dev/shm") as directory, ExitStack() as owned:
                ways = Ways(program, directory, owned)
                rows += one_start(ways, program.name, 3 if quick else 12)
                rows += many_starts(ways, program.name, AT_ONCE[:2] if quick else AT_ONCE)
        except (CriuError, OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            rows.append(note("first answer", f"not measured: {reason}", program=program.name))
    return rows


if __name__ == "__main__":
    main("snapshots", "time from a start to the first answer of a program", measure)
