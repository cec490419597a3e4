"""Interrupted calls: by Ctrl-C, by other signals, by the hook, by the deadline.

An interrupted call ends in one of two ways. Either CRIU first undoes its work: the dumped process
runs again, a restored one has ended, no worker remains, and then the same exception is raised. Or
CRIU had already sent its last notification: the work is complete, and the exception has a note
about that and the result in its attribute ``result``. A signal whose handler raises nothing has
no effect on a call.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuOpts,
    DeadlineError,
    Notification,
    Notify,
    RestoreResult,
    dump,
    restore,
)
from pycriu_native._calls.call import Call

from .conftest import Spawn
from .support import releases
from .support.processes import PATIENCE, Target, eventually, is_alive, reap_all, state

DUMP = [Notify.PRE_DUMP, Notify.QUERY_EXT_FILES, Notify.POST_DUMP]
RESTORE = [Notify.PRE_RESTORE, Notify.POST_RESTORE, Notify.PRE_RESUME, Notify.POST_RESUME]
"""CRIU's notifications for a process without connections and namespaces, in this order."""

TOO_LATE = {Notify.PRE_RESUME, Notify.POST_RESUME}
"""Notifications whose refusal CRIU ignores."""


def _runs_untraced(pid: int) -> bool:
    """Whether a process is neither stopped nor traced now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return state(pid) in ("R", "S", "D") and "TracerPid:\t0\n" in status


def test_the_notifications_are_these(orphans: None, spawn: Spawn, images: Path) -> None:
    """The lists above have every notification."""
    target = spawn()
    received: list[Notify | str] = []
    opts = CriuOpts(images_directory=images)
    dump(target.pid, opts, on_notify=lambda n: received.append(n.action))
    assert received == [n for n in DUMP if n is not Notify.QUERY_EXT_FILES or releases.has("3.19")]
    reap_all()
    received.clear()
    restore(opts, on_notify=lambda n: received.append(n.action))
    assert received == RESTORE


# ---- a hook that raises ----


@pytest.mark.parametrize("moment", DUMP)
@pytest.mark.parametrize("leave_running", [True, None], ids=["left running", "ended"])
def test_a_hook_of_a_dump_raises(
    spawn: Spawn, images: Path, moment: Notify, leave_running: bool | None
) -> None:
    """At each notification: the same exception is raised, and the process already runs."""
    target = spawn()
    refusal = ValueError(moment)

    def refuse(notification: Notification) -> None:
        if notification.action is moment:
            raise refusal

    opts = CriuOpts(images_directory=images, leave_running=leave_running)
    with pytest.raises(ValueError) as caught:
        dump(target.pid, opts, on_notify=refuse)
    assert _runs_untraced(target.pid)
    assert caught.value is refusal
    assert not hasattr(refusal, "result")
    assert target.runs_on()
    dump(target.pid, opts)


@pytest.mark.parametrize("moment", RESTORE)
def test_a_hook_of_a_restore_raises(
    orphans: None, spawn: Spawn, images: Path, moment: Notify
) -> None:
    """The same exception is raised: no process remains, or, if it was too late, all exist."""
    target = spawn()
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    refusal = ValueError(moment)

    def refuse(notification: Notification) -> None:
        if notification.action is moment:
            raise refusal

    with pytest.raises(ValueError) as caught:
        restore(opts, on_notify=refuse)
    assert caught.value is refusal
    if moment in TOO_LATE:
        assert isinstance(refusal.result, RestoreResult)  # type: ignore[attr-defined]
        assert "complete by then" in refusal.__notes__[0]
        assert target.runs_on()
    else:
        assert not is_alive(target.pid)
        target.end()  # reaps it: here this process does
        restore(opts)
        assert target.runs_on()


def test_an_interruption_while_the_call_does_not_wait(
    spawn: Spawn, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler raises at any place in the caller's thread: the call is undone first."""
    target = spawn()
    threads = set(os.listdir("/proc/self/task"))
    is_over = Call.is_over
    armed: list[bool] = []

    def interrupted(call: Call) -> bool:
        if armed and threading.current_thread() is threading.main_thread():
            armed.clear()
            raise KeyboardInterrupt
        return is_over(call)

    def arm(notification: Notification) -> None:
        if notification.action is Notify.PRE_DUMP:
            armed.append(True)

    monkeypatch.setattr(Call, "is_over", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dump(target.pid, CriuOpts(images_directory=images), on_notify=arm)
    assert _runs_untraced(target.pid)
    eventually(lambda: set(os.listdir("/proc/self/task")) <= threads, "the end of its thread")
    assert target.runs_on()


# ---- a deadline ----


@pytest.mark.parametrize("deadline", [0.0, 0.001, 0.005])
def test_a_deadline_that_is_too_short(
    orphans: None, spawn: Spawn, images: Path, deadline: float
) -> None:
    """DeadlineError, which is a TimeoutError: the dump is undone, or no process was restored."""
    target = spawn()
    opts = CriuOpts(images_directory=images)
    with pytest.raises(DeadlineError) as caught:
        dump(target.pid, opts, deadline=deadline)
    assert _runs_untraced(target.pid)
    assert isinstance(caught.value, TimeoutError)
    assert target.runs_on()

    target.dump(opts)
    with pytest.raises(DeadlineError):
        restore(opts, deadline=deadline)
    assert not is_alive(target.pid)
    target.end()
    restore(opts, deadline=60)
    assert target.runs_on()


@pytest.mark.parametrize("deadline", [float("inf"), 1e308, 10**12])
def test_a_deadline_that_never_passes(spawn: Spawn, images: Path, deadline: float) -> None:
    """A deadline longer than the kernel's timers can represent."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True), deadline=deadline)
    assert target.runs_on()


@pytest.mark.parametrize("moment", DUMP)
def test_a_deadline_that_passes_in_the_middle(spawn: Spawn, images: Path, moment: Notify) -> None:
    """A deadline that passes during a hook, also the last one, undoes the call when the hook
    returns.
    """
    target = spawn()

    def wait_too_long(notification: Notification) -> None:
        if notification.action is moment:
            eventually(lambda: time.monotonic() > over, "the deadline")

    opts = CriuOpts(images_directory=images, leave_running=True)
    over = time.monotonic() + 1.2
    with pytest.raises(DeadlineError) as late:
        dump(target.pid, opts, on_notify=wait_too_long, deadline=1.0)
    assert not hasattr(late.value, "result")
    assert _runs_untraced(target.pid)
    assert target.runs_on()


# ---- signals ----


@contextmanager
def _many_signals() -> Iterator[list[int]]:
    """Send SIGUSR1 to this process repeatedly; its handler only counts."""
    hits: list[int] = []
    over = threading.Event()

    def send_signals() -> None:
        while not over.wait(0.0005):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: hits.append(1))
    thread = threading.Thread(target=send_signals)
    thread.start()
    try:
        yield hits
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_many_signals(orphans: None, spawn: Spawn, images: Path) -> None:
    """Twenty dumps and restores succeed under thousands of signals."""
    target = spawn()
    opts = CriuOpts(images_directory=images)
    with _many_signals() as hits:
        for _ in range(20):
            before = len(hits)
            dump(target.pid, opts)
            assert len(hits) > before
            target.end()
            restore(opts)
    assert target.runs_on()


@pytest.mark.parametrize("moment", [Notify.PRE_DUMP, Notify.POST_DUMP, *RESTORE])
def test_a_script_that_does_not_end(
    orphans: None,
    spawn: Spawn,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: Notify,
) -> None:
    """An interruption ends the action scripts that CRIU waits for, and CRIU undoes the call or
    completes it. A program that was started by an action script is not ended.
    """
    releases.required("3.19", "action_scripts")
    monkeypatch.setenv("CRTOOLS_SCRIPT_ACTION", "post-restore")
    target = spawn()
    script, begun, fifo = (tmp_path / name for name in ("script", "begun", "fifo"))
    os.mkfifo(fifo)
    script.write_text(
        f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = {moment.value} ] || exit 0\n'
        f"[ -e '{begun}' ] || {{ : > '{begun}'; kill -USR1 {os.getpid()}; }}\n"
        f"read line < '{fifo}'\n"
    )
    script.chmod(0o755)
    opts = CriuOpts(images_directory=images)
    scripted = CriuOpts(images_directory=images, action_scripts=[script] * 2)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if moment in RESTORE:
        target.dump(opts)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            restore(scripted) if moment in RESTORE else dump(target.pid, scripted)
    finally:
        signal.signal(signal.SIGUSR1, before)
    if moment in TOO_LATE:
        assert isinstance(caught.value.result, RestoreResult)  # type: ignore[attr-defined]
        assert target.runs_on()
        return
    assert not any("in time" in note for note in caught.value.__notes__)
    if moment in RESTORE:
        target.end()
        restore(opts)
    else:
        assert _runs_untraced(target.pid)
        assert not [*images.glob("*.img")]
        dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    assert target.runs_on()


INTERRUPTED = """
import json, os, signal, sys, threading, time
from pathlib import Path
from pycriu_native import CriuOpts, dump, restore
from pycriu_native._support.unpatched import Event

verb, pid, images, how = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
main = threading.main_thread().ident
received = threading.Event()
threads = []


def interrupt(*_):
    received.set()
    raise KeyboardInterrupt


signal.signal(signal.SIGINT, interrupt)


def workers():
    own = []
    for task in Path("/proc/self/task").iterdir():
        try:
            own += (task / "children").read_text().split()
        except OSError:
            pass  # a thread of a call that has ended
    return sorted({int(child) for child in own} - {pid})


def waits():
    # The hook has returned, and what it answered is on its way: an interruption does not refuse it.
    frame, running = sys._current_frames()[main], set()
    while frame is not None:
        running.add(frame.f_code)
        frame = frame.f_back
    return Event.wait.__code__ in running and on_notify.__code__ not in running


def ctrl_c(worker):
    # To the whole group, as a terminal does.
    while not waits():
        time.sleep(0.001)
    os.killpg(0, signal.SIGINT)
    received.wait()
    time.sleep(0.01)
    os.kill(worker, signal.SIGCONT)


def on_notify(notification):
    if notification.action == how:
        [worker] = [w for w in workers() if "criu" in Path(f"/proc/{w}/comm").read_text()]
        os.kill(worker, signal.SIGSTOP)  # so that it is not done before the signal comes
        threads.append(threading.Thread(target=ctrl_c, args=[worker]))
        threads[0].start()


def later():
    time.sleep(float(how))
    os.killpg(0, signal.SIGINT)


outcome = {"interrupted": False, "result": None, "notes": []}
try:
    if how[0].isdigit():
        threads.append(threading.Thread(target=later))
        threads[0].start()
    opts = CriuOpts(images_directory=images)
    if verb == "restore":
        restore(opts, on_notify=on_notify)
    else:
        dump(pid, opts, on_notify=on_notify)
except KeyboardInterrupt as interruption:
    outcome["interrupted"] = True
    outcome["result"] = repr(getattr(interruption, "result", None))
    outcome["notes"] = getattr(interruption, "__notes__", [])
try:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
except (FileNotFoundError, ProcessLookupError):
    lines = []
outcome["status"] = dict(line.split(":\\t", 1) for line in lines if "\\t" in line)
outcome["workers"] = workers()
try:
    for thread in threads:
        thread.join()
    if not received.wait(60):
        raise SystemExit("no signal came")
except KeyboardInterrupt:
    pass
print(json.dumps(outcome))
"""


def _interrupted(verb: str, target: Target, images: Path, how: str) -> dict[str, Any]:
    """The outcome of a call in a separate process that gets SIGINT."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, verb, str(target.pid), str(images), how],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    out, errors = process.communicate(timeout=3 * PATIENCE)
    assert process.returncode == 0, errors
    message: dict[str, Any] = json.loads(out)
    assert message["workers"] == []
    status = message.pop("status")
    assert status.get("TracerPid", "0") == "0"
    message["state"] = status.get("State", "")[:1]
    return message


@pytest.mark.parametrize("moment", DUMP)
def test_ctrl_c_in_a_dump(spawn: Spawn, images: Path, moment: Notify) -> None:
    """SIGINT after each notification, while the call waits: undone, or complete with a note."""
    target = spawn()
    message = _interrupted("dump", target, images, moment)
    assert message["interrupted"]
    if moment is Notify.POST_DUMP:
        assert message["result"].startswith(f"DumpResult(pid={target.pid}")
        assert "the dump was complete by then" in message["notes"][0]
        assert message["state"] in ("", "Z")
        target.reap()
        restore(CriuOpts(images_directory=images))
    else:
        assert message["result"] == "None"
        [note] = message["notes"]  # CRIU did not get the signal, so it could undo the call
        assert f"dump of pid {target.pid} undone after" in note
        assert message["state"] in ("R", "S", "D")
    assert target.runs_on()


@pytest.mark.parametrize("moment", RESTORE)
def test_ctrl_c_in_a_restore(orphans: None, spawn: Spawn, images: Path, moment: Notify) -> None:
    """SIGINT after each notification: no process remains, or all exist and are in the result."""
    target = spawn()
    target.dump(CriuOpts(images_directory=images))
    message = _interrupted("restore", target, images, moment)
    assert message["interrupted"]
    if moment is Notify.PRE_RESTORE:
        assert message["result"] == "None"
        assert message["state"] in ("", "Z")
        target.end()
        restore(CriuOpts(images_directory=images))
    else:
        assert message["result"].startswith(f"RestoreResult(pid={target.pid}")
        assert "the restore was complete by then" in message["notes"][0]
    assert target.runs_on()


def test_ctrl_c_at_random_instants(orphans: None, spawn: Spawn, images: Path) -> None:
    """SIGINT at any instant: the process runs, or its images are complete and restore."""
    target = spawn()
    opts = CriuOpts(images_directory=images)
    chance = random.Random(4)
    for _ in range(25):
        message = _interrupted("dump", target, images, f"{chance.uniform(0, 0.12):.4f}")
        undone = message["interrupted"] and message["result"] == "None"
        if undone:
            assert message["state"] in ("R", "S", "D")
        else:
            assert message["state"] in ("", "Z")
            target.end()
            restore(opts)
        assert target.runs_on()


class _InterruptedStart:
    """A thread whose ``start`` is interrupted before or after its function has started."""

    def __init__(self, target: Callable[[], object], *, begun: bool) -> None:
        self.ident: int | None = None
        self._thread = threading.Thread(target=target)
        self._begun = begun
        self.is_alive, self.join = self._thread.is_alive, self._thread.join

    def start(self) -> None:
        if self._begun:
            self._thread.start()
            self._thread.join(0.05)
            self.ident = self._thread.ident
        raise KeyboardInterrupt

    def go_on(self) -> None:
        """Start the interrupted function nevertheless."""
        self._thread.start()
        self._thread.join()


@pytest.mark.parametrize("begun", [False, True], ids=["before it begins", "once it has begun"])
def test_ctrl_c_while_the_thread_of_a_call_starts(
    spawn: Spawn, images: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """The call does nothing after the exception, even if its thread starts later."""
    made = []

    def thread(target: Callable[[], object], _: str) -> _InterruptedStart:
        made.append(_InterruptedStart(target, begun=begun))
        return made[0]

    monkeypatch.setattr("pycriu_native._calls.own_thread.RawThread", thread)
    target = spawn()
    opts = CriuOpts(images_directory=images)
    with pytest.raises(KeyboardInterrupt) as caught:
        dump(target.pid, opts, on_notify=lambda notification: time.sleep(0.2))
    if not begun:
        made[0].go_on()
    assert not hasattr(caught.value, "result")
    assert not (images / "inventory.img").exists()
    assert _runs_untraced(target.pid)
