"""CRIU is killed, stopped or cut off in the middle of a pre-dump: nothing is lost.

A pre-dump sends no notifications, so CRIU is disturbed at random instants, as shares of its log.
The worker waits for a child, which does the work. If the worker is killed, its child is not killed:
that could end the process, as the kill of a dump's worker can.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, OptionError, pre_dump
from pycriu_native._calls import exchange

from ..conftest import Spawn
from ..support.features import needs_soft_dirty
from ..support.processes import PATIENCE, children_of
from ..support.workers import workers
from . import matrix
from .faults import CODE, DEADLINE, CheckedProcess, code_in, left, raised, shut_down_the_socket
from .matrix import Cell, Instant
from .test_faults_random import INSTANTS, SEED, LogTrigger, kill_workers, phase_of

pytestmark = needs_soft_dirty


def _children() -> list[int]:
    """The workers' children."""
    return [child for worker in workers() for child in children_of(worker)]


def _all(number: int) -> None:
    for pid in (*_children(), *workers()):
        os.kill(pid, number)


def _child(number: int) -> None:
    for pid in _children():
        os.kill(pid, number)


FAULTS: dict[str, Callable[[], None]] = {
    "CRIU's child, which does the work, gets SIGKILL": lambda: _child(signal.SIGKILL),
    "CRIU gets SIGKILL": lambda: kill_workers(signal.SIGKILL),
    "CRIU and its child get SIGTERM": lambda: _all(signal.SIGTERM),
    "CRIU and its child get SIGSTOP": lambda: _all(signal.SIGSTOP),
    "its socket is shut down": shut_down_the_socket,
}
COSTLY = "CRIU's child, which does the work, gets SIGKILL"
"""What can cost the process its life, as in a dump: its share is counted."""


@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("what", FAULTS)
def test_in_a_pre_dump(
    spawn: Spawn,
    tmp_path: Path,
    orphans: None,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """The process runs, intact, or is one of the share that CRIU loses; images that are not
    complete are refused as a parent.
    """
    chance = random.Random(SEED)
    checked = CheckedProcess.start(spawn)

    def opts(name: object) -> CriuOpts:
        return CriuOpts(images_directory=tmp_path / str(name), log_level=4)

    took = pre_dump(checked.pid, opts("complete")).duration
    size = (tmp_path / "complete" / "pre-dump.log").stat().st_size
    # With SIGSTOP it is the deadline that ends the call; CRIU goes on then, and finishes. (One that
    # is stopped after the deadline is killed in the end: nobody sets it going once more.)
    monkeypatch.setattr(exchange, "GRACE", PATIENCE)
    struck = 0
    deadline = 3 * took + DEADLINE if "SIGSTOP" in what else None
    for instant in range(INSTANTS if what == COSTLY else min(INSTANTS, 20)):
        log = tmp_path / str(instant) / "pre-dump.log"
        begun = time.monotonic()
        in_time: list[bool] = []

        def act(begun: float = begun, in_time: list[bool] = in_time) -> None:
            in_time.append(deadline is None or time.monotonic() < begun + deadline - DEADLINE / 2)
            if in_time[0]:
                FAULTS[what]()

        trigger = LogTrigger(log, int(size * chance.random()), act)
        error: CriuError | None = None
        try:
            pre_dump(checked.pid, opts(instant), deadline=deadline)
        except CriuError as caught:
            error = caught
        finally:
            trigger.stop()
        if trigger.phase is None or in_time != [True]:
            continue  # this log was a little shorter than the first one, or came late
        struck += 1
        assert not workers(), [Path(f"/proc/{pid}/stack").read_text() for pid in workers()]
        process, remains = "runs, intact", left(error)
        # What a child that was not killed has done after it, is no matter.
        phase = phase_of(log) if what == COSTLY else trigger.phase
        if checked.survives():
            assert checked.is_intact()
            assert code_in(checked.pid) == (CODE in str(error and error.left_behind))
        else:
            process = "DIED"
            assert what == COSTLY
        if error is None or hasattr(error, "result"):
            images = "complete"
        else:
            images = "incomplete, and refused as a parent"
            with pytest.raises(OptionError, match=r"parent_image.*(did not|unlike)"):
                pre_dump(os.getppid(), replace(opts("next"), parent_image=f"../{instant}"))
        cell = Cell("pre_dump", what, phase, raised(error), process, images, remains)
        if cell not in matrix.cells:
            matrix.cells.append(cell)
        if what == COSTLY:
            outcome = process if remains == "nothing" else f"{process}, with {remains}"
            matrix.instants.append(Instant("pre_dump", "SIGKILL", phase, outcome))
        if process == "DIED" or code_in(checked.pid):
            checked.target.end()
            checked = CheckedProcess.start(spawn)
    assert struck > min(INSTANTS, 20) // 2
    if what == COSTLY:
        matrix.notes.append(f"seed of the random instants of a pre-dump by SIGKILL: {SEED}")
    # It can be pre-dumped again, and be dumped on top of that.
    pre_dump(checked.pid, opts("first"))
    last = CriuOpts(
        images_directory=tmp_path / "last",
        parent_image="../first",
        track_mem=True,
        tcp_established=True,
    )
    checked.dumps_and_restores(last)
