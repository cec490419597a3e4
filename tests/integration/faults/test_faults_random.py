"""CRIU is killed at random times of a dump and of a restore.

The instant is a share of CRIU's log, so that it is the same on a slow machine. At each instant the
error is tested, and that no worker, lock or stopped process remains and that the images can be
restored. Losses that cannot be prevented are counted: if CRIU is killed by SIGKILL while the
process makes a system call for it, or a thread runs its code, the process has wrong registers, and
ends. (A worker blocks SIGTERM and the other signals that end services.)
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, WorkerDiedError, dump, restore

from ..conftest import Spawn
from ..support.hosts import OURS
from ..support.processes import is_alive, reap_all
from ..support.streams import locks
from ..support.workers import workers
from . import matrix
from .faults import CODE, CheckedProcess, code_in
from .matrix import Instant

INSTANTS = int(os.environ.get("PYCRIU_NATIVE_INSTANTS", "12"))
"""How many for each signal and verb."""
SEED = int(os.environ.get("PYCRIU_NATIVE_SEED", "6"))

PHASES = (
    ("Dumping finished", "at the end"),
    ("Pre-dumping finished", "at the end"),
    ("Pre-dumping", "its memory is written, and it runs"),
    ("Unlock network", "the tree is resumed"),
    ("Running post-dump scripts", "all is saved"),
    ("Writing stats", "all is saved"),
    ("Dumping task cwd", "a process is saved"),
    ("Parasite syscall_ip", "code is injected into a process"),
    ("Dumping GP/FPU registers", "the registers of a thread are read"),
    ("Obtaining task stat", "a process is inspected"),
    ("Seized task", "the tree is stopped"),
    ("Running pre-dump scripts", "the tree is stopped"),
)


class LogTrigger:
    """Sends a signal to CRIU as soon as a log has a certain length."""

    def __init__(self, log: Path, size: int, act: Callable[[], object]) -> None:
        self._log, self._size, self._do = log, size, act
        self.phase: str | None = None
        """What CRIU was doing when the harm was done; None: it was not."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            if self._log.exists() and self._log.stat().st_size >= self._size:
                self._do()
                self.phase = phase_of(self._log)
                return
            time.sleep(0.0001)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def kill_workers(number: int) -> None:
    """A signal for the workers that there are, if there are any."""
    for pid in workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def phase_of(log: Path) -> str:
    """The phase of a dump, by the last lines of its log."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        for words, phase in PHASES:
            if words in line:
                return phase
    return "before the tree is stopped"


def _another(checked: CheckedProcess, spawn: Spawn) -> CheckedProcess:
    checked.target.end()
    return CheckedProcess.start(spawn)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dump(spawn: Spawn, tmp_path: Path, orphans: None, number: signal.Signals) -> None:
    """An error or a result, and a process that runs, intact, or a share that CRIU loses."""
    chance = random.Random(SEED)
    checked = CheckedProcess.start(spawn)

    def opts(name: str) -> CriuOpts:
        return CriuOpts(
            images_directory=tmp_path / name,
            tcp_established=True,
            network_lock="nftables",
            leave_running=True,
            log_level=4,
        )

    dump(checked.pid, opts("complete"))
    size = (tmp_path / "complete" / "dump.log").stat().st_size
    with_code = False
    for instant in range(INSTANTS):
        log = tmp_path / str(instant) / "dump.log"
        trigger = LogTrigger(log, int(size * chance.random()), partial(kill_workers, number))
        error: WorkerDiedError | None = None
        try:
            dump(checked.pid, opts(str(instant)))
        except WorkerDiedError as caught:
            error = caught
        finally:
            trigger.stop()
        assert not workers()
        assert not locks(OURS)[0]
        assert error is None or error.status == -number == -signal.SIGKILL
        outcome = "done" if error is None else "runs, intact"
        if error is None or checked.survives():
            assert checked.losses() == []
            assert code_in(checked.pid) == (CODE in str(error and error.left_behind))
            if code_in(checked.pid):
                outcome = "runs, intact, with CRIU's code in its memory"
                if not with_code:
                    with_code = True
                    checked.dumps_and_restores(replace(opts("again"), leave_running=None))
                    assert code_in(checked.pid)
                checked = _another(checked, spawn)
        else:
            outcome = "DIED"
            assert phase_of(log) != "before the tree is stopped"
            checked = _another(checked, spawn)
        matrix.instants.append(Instant("dump", number.name, phase_of(log), outcome))
    matrix.notes.append(f"seed of the random instants of a dump by {number.name}: {SEED}")
    checked.dumps_and_restores(CriuOpts(images_directory=tmp_path / "last", tcp_established=True))


def test_a_restore(spawn: Spawn, tmp_path: Path, orphans: None) -> None:
    """Killed at any instant of a restore: nothing is left, and the same images restore."""
    chance = random.Random(SEED)
    checked = CheckedProcess.start(spawn)
    opts = CriuOpts(images_directory=tmp_path / "images", tcp_established=True, log_level=4)
    dump(checked.pid, opts)
    checked.target.reap()
    log = tmp_path / "images" / "restore.log"
    restore(opts)
    size = log.stat().st_size
    for _ in range(INSTANTS):
        dump(checked.pid, opts)
        checked.target.end()
        reap_all()
        log.unlink(missing_ok=True)
        act = partial(kill_workers, signal.SIGKILL)
        trigger = LogTrigger(log, int(size * chance.random()), act)
        outcome = "done"
        try:
            restore(opts)
        except WorkerDiedError:
            outcome = "none; restorable"
            assert not is_alive(checked.pid)
            reap_all()
        finally:
            trigger.stop()
        assert not workers()
        if outcome != "done":
            restore(opts)
        assert checked.losses() == []
        matrix.instants.append(Instant("restore", "SIGKILL", "any", outcome))
    matrix.notes.append(f"seed of the random instants of a restore by SIGKILL: {SEED}")
