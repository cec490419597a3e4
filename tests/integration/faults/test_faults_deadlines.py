"""Effects of a deadline, or of a cancellation, on the dumped process in each phase.

The rows of a table of docs/reliability.md: the end of the call, the state of the process, and the
time from the deadline to the return of the call, when the process is no longer traced.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, DeadlineError, DumpResult, Notification, Notify, aio, dump

from ..conftest import Spawn
from ..support.processes import eventually
from ..support.workers import the_worker
from . import matrix
from .faults import CheckedProcess
from .matrix import Late
from .test_faults_random import INSTANTS, SEED

DUMP = [Notify.PRE_DUMP, Notify.QUERY_EXT_FILES, Notify.POST_DUMP]
DEADLINE = 0.8


def _opts(directory: Path) -> CriuOpts:
    return CriuOpts(images_directory=directory, tcp_established=True, network_lock="nftables")


def _record(
    when: str, error: BaseException, checked: CheckedProcess, opts: CriuOpts, late: float
) -> None:
    """Look at the process, and remember the row. CRIU has undone its work, and was not killed."""
    assert not any("was ended" in note for note in getattr(error, "__notes__", ()))
    if isinstance(getattr(error, "result", None), DumpResult):
        checked.restores(opts)
        process = "saved, and restored intact"
    else:
        assert checked.is_intact()
        process = "runs, intact"
    gets = f"`{type(error).__name__}`" + (" with the result" if hasattr(error, "result") else "")
    matrix.lates.append(Late("dump", when, gets, process, late))


@pytest.mark.parametrize("moment", DUMP)
@pytest.mark.parametrize("stopped", [False, True], ids=["hook is busy", "CRIU is stopped"])
def test_a_deadline_at(
    spawn: Spawn, images: Path, orphans: None, moment: Notify, stopped: bool
) -> None:
    """The deadline passes during the hook, or while CRIU is stopped after the notification."""
    checked = CheckedProcess.start(spawn)
    over = time.monotonic() + DEADLINE

    def hook(notification: Notification) -> None:
        if notification.action is not moment:
            return
        if stopped:
            os.kill(the_worker(), signal.SIGSTOP)
        else:
            eventually(lambda: time.monotonic() > over + 0.05, "the deadline")

    error: DeadlineError | None = None
    try:
        dump(checked.pid, _opts(images), on_notify=hook, deadline=DEADLINE)
    except DeadlineError as caught:
        error = caught
    late = time.monotonic() - over - (0 if stopped else 0.05)
    if error is None:
        assert moment is Notify.POST_DUMP  # CRIU was done before anybody looked at the clock
        checked.restores(_opts(images))
        return
    how = "CRIU stopped by SIGSTOP" if stopped else "while the hook runs"
    _record(f"`{moment}`, {how}", error, checked, _opts(images), late)


def test_deadlines_at_random_instants(spawn: Spawn, tmp_path: Path, orphans: None) -> None:
    """At any time: the dump is undone and the process continues, or it is complete with
    a result.
    """
    chance = random.Random(SEED)
    checked = CheckedProcess.start(spawn)
    started = time.monotonic()
    dump(checked.pid, replace(_opts(tmp_path / "first"), leave_running=True))
    span = time.monotonic() - started
    for instant in range(INSTANTS):
        opts = _opts(tmp_path / str(instant))
        received: list[Notify | str] = []
        deadline = chance.uniform(0, span * 1.2)
        over = time.monotonic() + deadline

        def record(notification: Notification, received: list[Notify | str] = received) -> None:
            received.append(notification.action)

        try:
            dump(checked.pid, opts, deadline=deadline, on_notify=record)
        except DeadlineError as error:
            when = f"after `{received[-1]}`" if received else "before the first notification"
            _record(when, error, checked, opts, time.monotonic() - over)
        else:
            checked.restores(opts)


@pytest.mark.parametrize("moment", DUMP)
def test_a_cancel_at(spawn: Spawn, images: Path, orphans: None, moment: Notify) -> None:
    """The task of an asyncio dump is cancelled while its hook awaits."""
    checked = CheckedProcess.start(spawn)
    asked: list[float] = []

    async def body() -> None:
        reached = asyncio.Event()

        async def hook(notification: Notification) -> None:
            if notification.action is moment:
                reached.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(aio.dump(checked.pid, _opts(images), on_notify=hook))
        coming = asyncio.create_task(reached.wait())
        await asyncio.wait({task, coming}, return_when=asyncio.FIRST_COMPLETED)
        if not reached.is_set():
            coming.cancel()
            pytest.skip(f"this CRIU has no {moment}")
        asked.append(time.monotonic())
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError) as caught:
        asyncio.run(body())
    took = time.monotonic() - asked[0]
    _record(f"`{moment}`, cancelled by asyncio", caught.value, checked, _opts(images), took)
