"""Copies of a snapshot that share its memory, compared with copies that do not."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from subprocess import PIPE
from typing import Any

from pycriu_native.snapshots import SharedTemplate, Snapshot, SnapshotProcess, prepare

from .common import HERE, Row, in_turns, main, memory_of, row, scratch, timed

PROGRAM = """
import sys
import threading
MIB = int(sys.argv[1])
try:
    import numpy
    data = numpy.random.default_rng(1).integers(0, 2**63, MIB * 2**17)
except ImportError:
    import os
    data = bytearray(os.urandom(2**20)) * MIB
for _ in range(2):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
if len(sys.argv) < 3:
    from pycriu_native import guest
    guest.wait()
for line in sys.stdin:
    print(int(data[int(line)]), flush=True)
"""
AT_ONCE = 16
NAMES = ("plain", "shared")

Start = Callable[[], SnapshotProcess[str]]


def measure(quick: bool) -> list[Row]:
    """Measure single starts in turns, and then sixteen concurrent ones."""
    mib, times = (64, 3) if quick else (320, 12)
    with scratch(os.environ.get("TMPDIR", "/var/tmp")) as directory:
        program = directory / "program.py"
        program.write_text(PROGRAM)
        command = [sys.executable, str(program), str(mib)]
        env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        cold = [_cold(command, env) for _ in range(3)]
        snapshot = Snapshot.take(command, directory / "snapshot", env=env)
        preparing = [timed(lambda: prepare(snapshot.directory, directory / "unused"))]
        snapshot.share().close()
        began = time.perf_counter()
        with snapshot.share() as template:
            ready = [(time.perf_counter() - began) * 1e3]
            starts = {"plain": _start(snapshot, None), "shared": _start(snapshot, template)}
            case: dict[str, Any] = {"MiB": mib}
            rows = [
                row("prepare", "ms", preparing, **case),
                row("template ready", "ms", ready, **case),
                row("cold start, first answer", "ms", cold, **case),
            ]
            spent: dict[str, list[float]] = {name: [] for name in NAMES}
            bodies = {name: _first_answer(starts[name], spent[name]) for name in NAMES}
            one = in_turns(bodies, times)
            rows += [
                row("one start, processor time", "ms", spent[name], memory=name, **case)
                for name in NAMES
            ]
            rows += [
                row("one start, first answer", "ms", one[name], memory=name, **case)
                for name in NAMES
            ]
            for name in NAMES:
                answers, private, proportional = _at_once(starts[name])
                more: dict[str, Any] = {"memory": name, "copies": AT_ONCE, **case}
                rows.append(row("first answer of each", "ms", answers, **more))
                rows.append(row("private memory of each", "MiB", private, **more))
                rows.append(row("proportional share of each", "MiB", proportional, **more))
        return rows


def _start(snapshot: Snapshot, template: SharedTemplate | None) -> Start:
    def start() -> SnapshotProcess[str]:
        result = snapshot.start(
            stdin=PIPE,
            stdout=PIPE,
            text=True,
            check=False,
            share_memory=template is not None,
            via=template,
        )
        assert result.stdin is not None
        result.stdin.write("5\n")
        result.stdin.flush()
        return result

    return start


def _first_answer(start: Start, spent: list[float]) -> Callable[[], float]:
    """Milliseconds to the response, and processor time until the copy has ended."""

    def measured() -> float:
        before = sum(os.times()[:4])
        began = time.perf_counter()
        with start() as process:
            assert process.stdout is not None
            process.stdout.readline()
            result = (time.perf_counter() - began) * 1e3
            process.kill()
        spent.append((sum(os.times()[:4]) - before) * 1e3)
        return result

    return measured


def _at_once(start: Start) -> tuple[list[float], list[float], list[float]]:
    """The milliseconds to each first response, and the memory of each in MiB while all run."""
    began = time.perf_counter()

    def answered() -> tuple[float, SnapshotProcess[str]]:
        process = start()
        assert process.stdout is not None
        process.stdout.readline()
        return (time.perf_counter() - began) * 1e3, process

    with contextlib.ExitStack() as stack:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            done = [each.result() for each in [pool.submit(answered) for _ in range(AT_ONCE)]]
        for _, process in done:
            stack.callback(process.__exit__, None, None, None)
            stack.callback(process.kill)
        memory = [memory_of(process.pid) for _, process in done]
    private, proportional = map(list, zip(*memory, strict=True))
    return [each for each, _ in done], private, proportional


def _cold(command: list[str], env: dict[str, str]) -> float:
    words = [*command, "cold"]
    return timed(lambda: subprocess.run(words, input=b"5\n", env=env, check=True, stdout=PIPE))


if __name__ == "__main__":
    main("shared_memory", __doc__ or "", measure)
