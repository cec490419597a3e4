"""Time to the first answer of a program: cold, forked, and started from a snapshot."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, PIPE

from pycriu_native import CriuOpts, Verb, WorkerPool
from pycriu_native._transport.program import find_program
from pycriu_native.snapshots import Snapshot
from pycriu_native.snapshots.namespaces import Namespaces
from pycriu_native.snapshots.restore import PID_NAMESPACE

from .common import Row, main, note, row, scratch

PROGRAMS = {
    "small": ("json",),
    "standard library": ("asyncio", "email.mime.text", "http.server", "sqlite3", "unittest.mock"),
    "numpy": ("numpy",),
    "numpy, pandas": ("numpy", "pandas"),
}
"""What each program imports."""

CODE = """
from pycriu_native import guest
import {imports}
guest.wait()
print("answer", flush=True)
input()
"""

FORKING = """
import multiprocessing, sys, time
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload({imports})
for line in sys.stdin:
    since = time.perf_counter()
    ours, theirs = context.Pipe()
    process = context.Process(target=theirs.send_bytes, args=(b"answer",))
    process.start()
    ours.recv_bytes()
    print((time.perf_counter() - since) * 1e3, flush=True)
    process.join()
"""
"""A program of its own: of this one, each forked process would import the main module again."""

ANSWER = b"answer\n"


def importable(name: str) -> bool:
    """Whether a module is installed."""
    return importlib.util.find_spec(name.partition(".")[0]) is not None


class Ways:
    """The ways to start one program; each returns milliseconds to its first answer."""

    def __init__(self, imports: tuple[str, ...], directory: Path, owned: ExitStack) -> None:
        self.command = [sys.executable, "-c", CODE.format(imports=", ".join(imports))]
        # A program with threads, such as those of OpenBLAS, cannot be a zygote.
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.snapshot = owned.enter_context(
            Snapshot.take(self.command, directory, env=self.environment)
        )
        self.zygote = owned.enter_context(self.snapshot.zygote())
        self.pool = owned.enter_context(WorkerPool(1))
        words = [sys.executable, "-c", FORKING.format(imports=list(imports))]
        self.forking = owned.enter_context(
            subprocess.Popen(words, stdin=PIPE, stdout=PIPE, bufsize=0)
        )

    def cold(self) -> float:
        """A new process that imports all."""
        since = time.perf_counter()
        with subprocess.Popen(self.command, stdin=PIPE, stdout=PIPE, env=self.environment) as done:
            return self._until_answer(done, since)

    def forked(self) -> float:
        """multiprocessing's fork server, which has imported all."""
        assert self.forking.stdin is not None
        assert self.forking.stdout is not None
        self.forking.stdin.write(b"\n")
        return float(self.forking.stdout.readline())

    def plain(self) -> float:
        """A start with a worker of its own that restores all memory."""
        since = time.perf_counter()
        with self.snapshot.start(stdin=PIPE, stdout=PIPE, share_memory=False) as process:
            return self._until_answer(process, since)

    def shared(self) -> float:
        """A start that shares the memory of the snapshot."""
        since = time.perf_counter()
        with self.snapshot.start(stdin=PIPE, stdout=PIPE, share_memory=True) as process:
            return self._until_answer(process, since)

    def forked_by_zygote(self) -> float:
        """A start by a copy that was restored before."""
        since = time.perf_counter()
        with self.zygote.start(stdin=PIPE, stdout=PIPE) as process:
            return self._until_answer(process, since)

    def pooled(self) -> float:
        """A start with a worker of a pool."""
        since = time.perf_counter()
        with self.snapshot.start(stdin=PIPE, stdout=PIPE, via=self.pool) as process:
            return self._until_answer(process, since)

    def program(self) -> float:
        """The criu program on the same images with the same options; namespaces are made before."""
        record = self.snapshot.record
        with ExitStack() as owned:
            namespaces = owned.enter_context(Namespaces())
            pid_namespace = namespaces.open("pid")
            owned.callback(os.close, pid_namespace)
            reader, writer = os.pipe()
            answers = owned.enter_context(open(reader, "rb"))
            inherited = [(pid_namespace, PID_NAMESPACE)]
            start = b'{"number": 1, "arguments": null, "environment": null, "variables": null, '
            start += b'"directory": null, "seed": ""}\n'
            line, end = os.pipe()
            os.write(end, start)
            owned.callback(os.close, end)
            null = os.open(os.devnull, os.O_RDWR)
            for fd, key in zip(
                (line, null, writer, os.dup(null)),
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
            for fd in fds[1:]:
                os.close(fd)
            answered = answers.readline()
            taken = (time.perf_counter() - since) * 1e3
            done.wait()
            if answered != ANSWER:
                raise RuntimeError((work / "log").read_text())
            return taken

    @staticmethod
    def _until_answer(process: subprocess.Popen[bytes], since: float) -> float:
        assert process.stdout is not None
        if process.stdout.readline() != ANSWER:
            raise RuntimeError("the program did not answer")
        taken = (time.perf_counter() - since) * 1e3
        process.kill()
        return taken


def measure(quick: bool) -> list[Row]:
    """Each way in turn, for each program."""
    times = 5 if quick else 15
    rows: list[Row] = []
    for name, imports in PROGRAMS.items():
        lacking = [each for each in imports if not importable(each)]
        if lacking:
            rows.append(note("first answer", f"{', '.join(lacking)} not installed", program=name))
            continue
        with scratch("/dev/shm") as directory, ExitStack() as owned:
            ways = Ways(imports, directory / "snapshot", owned)
            each: dict[str, Callable[[], float]] = {
                "cold start": ways.cold,
                "forkserver with preload": ways.forked,
                "criu restore": ways.program,
                "start, share_memory=False": ways.plain,
                "start, share_memory=True": ways.shared,
                "start, WorkerPool": ways.pooled,
                "zygote": ways.forked_by_zygote,
            }
            taken: dict[str, list[float]] = {way: [] for way in each}
            for number in range(times + 1):
                for way, run in each.items():
                    value = run()
                    if number:  # the first fills caches, and starts the fork server
                        taken[way].append(value)
            rows += [row("first answer", "ms", taken[way], program=name, way=way) for way in each]
    return rows


if __name__ == "__main__":
    main("snapshots", "time from a start to the first answer of a program", measure)
