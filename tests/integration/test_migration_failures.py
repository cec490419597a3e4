"""Failed migrations: the process continues at the source, and nothing remains at the destination.

Each failure is real: a restore that is impossible, a hook that refuses, killed processes, an
interrupted network; before, during and after the permission to run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuOpts,
    DeadlineError,
    MigrationError,
    MigrationMode,
    Notification,
    Notify,
    PeerLostError,
    WorkerDiedError,
    migrate_out,
)
from pycriu_native.migration.handover import Handover

from .support.features import needs_lazy_pages
from .support.hosts import Host
from .support.migrations import Destination, Leaving, shaped
from .support.processes import PATIENCE, Target, children, eventually, is_alive, kill, state
from .test_migration import BOTH, Arrive, arrive, far, resident, traveller

__all__ = ["arrive", "far", "traveller"]

RUNNING = ("R", "S", "D")
"""States of a process that is neither stopped nor ended."""

BRIEF: dict[str, Any] = {"insecure": True, "peer_timeout": 2.0}
"""Arguments of both calls, with a short timeout for a lost peer."""


class _Interrupted(Exception):
    """The exception of a signal handler, like KeyboardInterrupt."""


def _is_whole(target: Target, checksum: str) -> None:
    """The source's process runs, with all of its memory."""
    assert is_alive(target.pid)
    assert target.ask("checksum") == checksum
    assert target.runs_on()


def _is_clean(there: Destination) -> None:
    eventually(there.is_clean, "a clean destination")


def _reap_orphans(others: set[int]) -> None:
    """Reap the worker and the watchdog of a killed source, when they have ended.

    ``others`` are the children of this process from before, also those of other tests.
    """

    def all_ended() -> bool:
        for pid in children() - others:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return children() <= others

    eventually(all_ended, "the end of the worker and the watchdog")


def _never_both(leaving: Leaving, source: int, copy: int) -> None:
    """During the migration: when the source's process runs, the copy does not."""
    while leaving.under_way:
        if state(source) in RUNNING:
            assert state(copy) in ("", "T", "Z"), "both of them run"
        time.sleep(0.001)


def _until(there: Destination, action: str) -> None:
    while there.next().get("notification") != action:
        pass


@pytest.fixture
def slow(far: tuple[Host, str]) -> Iterator[None]:
    """Limit the bandwidth of the connection to the destination."""
    with shaped(far[1], "40mbit"):
        yield


@pytest.fixture
def cut(far: tuple[Host, str]) -> Iterator[Callable[[], None]]:
    """Interrupt the connection at the other host; it is restored after the test."""
    there, _ = far
    link = there.run("ip", "-o", "link", "show", "type", "veth").split()[1].partition("@")[0]

    def cut_it() -> None:
        there.run("ip", "link", "set", link, "down")

    yield cut_it
    there.run("ip", "link", "set", link, "up")
    eventually(lambda: _is_reachable(far[1]), "the mending of the cable")


def _is_reachable(address: str) -> bool:
    try:
        socket.create_connection((address, 9), 1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


@BOTH
def test_a_restore_that_fails(arrive: Arrive, traveller: Target, mode: MigrationMode) -> None:
    """A file of the process is missing at the destination: the source reports the destination's
    error.
    """
    checksum = traveller.ask("checksum")
    there = arrive(hide=str(traveller.directory))
    with pytest.raises(MigrationError, match=r"peer cancelled: restore .* continues at the source"):
        migrate_out(traveller.pid, CriuOpts(), to=there.place, mode=mode, insecure=True)
    message = there.until("result", "error")
    assert message["error"] != "MigrationInDoubtError", message
    _is_clean(there)
    assert not message["files"]
    assert set(message["descriptors"]) <= set(there.reports[0]["descriptors"])
    _is_whole(traveller, checksum)


@BOTH
@pytest.mark.parametrize(
    "action", [pytest.param("pre-restore", marks=pytest.mark.long), "post-restore"]
)
def test_a_hook_there_that_refuses(
    arrive: Arrive, traveller: Target, mode: MigrationMode, action: str
) -> None:
    """The copy is ended before the source is notified; the source's process then
    continues at once.
    """
    checksum = traveller.ask("checksum")
    there = arrive(raise_at=action)
    with pytest.raises(MigrationError, match="the hook refuses") as caught:
        migrate_out(traveller.pid, CriuOpts(), to=there.place, mode=mode, insecure=True)
    assert caught.value.by_peer
    assert caught.value.phase == "restore"
    assert there.until("result", "error")["error"] == "RuntimeError"
    _is_clean(there)
    _is_whole(traveller, checksum)


@BOTH
@pytest.mark.parametrize(
    "action",
    [
        "pre-restore",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("post-restore", "pre-resume")),
    ],
)
def test_a_destination_that_is_killed(
    arrive: Arrive, traveller: Target, mode: MigrationMode, action: str
) -> None:
    """The watchdog cleans up; after ``post-restore`` the source waits for that."""
    checksum = traveller.ask("checksum")
    there = arrive(die_at=action, arguments=BRIEF)
    with pytest.raises(PeerLostError, match="the process continues at the source"):
        migrate_out(traveller.pid, CriuOpts(), to=there.place, mode=mode, **BRIEF)
    _is_clean(there)
    _is_whole(traveller, checksum)


@needs_lazy_pages
@pytest.mark.parametrize(
    "who", ["destination", "daemon", pytest.param("source's CRIU", marks=pytest.mark.long)]
)
def test_somebody_is_killed_while_pages_come(
    arrive: Arrive, traveller: Target, slow: None, who: str
) -> None:
    """The running copy is ended, and the source's process continues from where it was frozen."""
    checksum = traveller.ask("checksum")
    there = arrive(arguments=BRIEF)
    leaving = Leaving(traveller, there, mode=MigrationMode.POST_COPY, **BRIEF)
    _until(there, "post-resume")
    copy = there.inside(traveller.pid)
    assert is_alive(copy)
    if who == "destination":
        kill(there.pid)
    elif who == "daemon":
        kill(next(pid for pid in there.pids() if _is_lazy_daemon(pid)))
    else:
        kill(next(pid for pid in children() if b"criu: dump" in _command(pid)))
    if who != "source's CRIU":  # which resumes its process at once
        _never_both(leaving, traveller.pid, copy)
    error = leaving.join()
    assert isinstance(error, Exception), leaving.result
    assert not is_alive(copy)
    _is_clean(there)
    _is_whole(traveller, checksum)


@needs_lazy_pages
def test_no_zeros_for_the_daemons_end(arrive: Arrive, traveller: Target, slow: None) -> None:
    """The kernel does not fill pages of a copy whose daemon was killed; the copy is blocked until
    it is ended.
    """
    checksum = traveller.ask("checksum")
    there = arrive(arguments=BRIEF)
    leaving = Leaving(traveller, there, mode=MigrationMode.POST_COPY, **BRIEF)
    _until(there, "post-resume")
    copy = there.inside(traveller.pid)
    os.kill(there.pid, signal.SIGSTOP)  # otherwise it would end the copy before the check
    kill(next(pid for pid in there.pids() if _is_lazy_daemon(pid)))
    time.sleep(0.3)
    before = resident(copy)
    time.sleep(0.3)
    assert is_alive(copy)
    assert resident(copy) == before
    os.kill(there.pid, signal.SIGCONT)
    assert isinstance(leaving.join(), MigrationError)
    assert not is_alive(copy)
    _is_whole(traveller, checksum)


LEAVE = """
import json, sys
from pycriu_native import CriuOpts, migrate_out
pid, host, port, mode = json.loads(sys.argv[1])
migrate_out(pid, CriuOpts(), to=(host, port), mode=mode, insecure=True, peer_timeout=2.0)
"""


@pytest.mark.parametrize(
    ("mode", "action"),
    [
        pytest.param(MigrationMode.STOP_AND_COPY, "post-restore", marks=pytest.mark.long),
        pytest.param(MigrationMode.POST_COPY, "post-restore", marks=pytest.mark.long),
        pytest.param(MigrationMode.POST_COPY, "post-resume", marks=pytest.mark.long),
    ],
)
@needs_lazy_pages
def test_a_source_that_is_killed(
    arrive: Arrive,
    traveller: Target,
    slow: None,
    mode: MigrationMode,
    action: str,
    orphans: None,
) -> None:
    """The source's watchdog resumes the process when the destination has ended its copy."""
    checksum = traveller.ask("checksum")
    there = arrive(arguments=BRIEF, wait_at=action)
    words = json.dumps([traveller.pid, *there.place, str(mode)])
    source = subprocess.Popen([sys.executable, "-c", LEAVE, words], start_new_session=True)
    _until(there, action)
    copy = there.inside(traveller.pid)
    source.kill()
    source.wait()
    there.go_on()
    assert there.until("result", "error")["error"] == "PeerLostError"
    assert not is_alive(copy)
    _is_clean(there)
    _is_whole(traveller, checksum)


@pytest.mark.parametrize(
    "mode",
    [
        MigrationMode.STOP_AND_COPY,
        pytest.param(MigrationMode.POST_COPY, marks=[pytest.mark.long, needs_lazy_pages]),
    ],
)
def test_a_source_that_is_killed_while_the_network_is_down(
    arrive: Arrive,
    traveller: Target,
    cut: Callable[[], None],
    mode: MigrationMode,
    orphans: None,
    temporary: Path,
) -> None:
    """The source's process continues only when the destination has ended the running copy."""
    checksum = traveller.ask("checksum")
    there = arrive(arguments=BRIEF, wait_at="post-resume")
    others = children()
    words = json.dumps([traveller.pid, *there.place, str(mode)])
    source = subprocess.Popen([sys.executable, "-c", LEAVE, words], start_new_session=True)
    _until(there, "post-resume")
    copy = there.inside(traveller.pid)
    cut()
    source.kill()
    source.wait()
    while state(copy) in RUNNING:
        assert state(traveller.pid) not in RUNNING, "both of them run"
        time.sleep(0.001)
    there.go_on()
    assert there.until("result", "error")["error"] == "PeerLostError"
    _is_clean(there)
    _is_whole(traveller, checksum)
    _reap_orphans(others)
    assert not os.listdir(temporary)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files of the programs that a test starts."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    return place


GIVES_UP = """
import os, signal
from pycriu_native.migration.handover import Handover
give_up = Handover.give_up
def give_up_and_die(self, **cleanup):
    give_up(self, **cleanup)
    os.kill(os.getpid(), signal.SIGKILL)
Handover.give_up = give_up_and_die
"""


@pytest.mark.parametrize(
    "mode",
    [
        MigrationMode.STOP_AND_COPY,
        pytest.param(MigrationMode.POST_COPY, marks=[pytest.mark.long, needs_lazy_pages]),
    ],
)
def test_a_source_that_is_killed_after_the_end(
    arrive: Arrive, traveller: Target, mode: MigrationMode, orphans: None, temporary: Path
) -> None:
    """The source has confirmed that the copy may run: its process ends, the copy continues."""
    there = arrive(arguments=BRIEF)
    others = children()
    words = json.dumps([traveller.pid, *there.place, str(mode)])
    program = [sys.executable, "-c", GIVES_UP + LEAVE, words]
    assert subprocess.run(program, start_new_session=True).returncode == -signal.SIGKILL
    assert "result" in there.until("result", "error")
    eventually(lambda: not is_alive(traveller.pid), "the end of the process at the source")
    assert is_alive(there.inside(traveller.pid))
    _reap_orphans(others)
    assert not os.listdir(temporary)


@BOTH
def test_an_interruption_after_the_end(
    arrive: Arrive, traveller: Target, mode: MigrationMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception is raised; the process is not resumed: its copy runs at the destination."""
    there = arrive(arguments=BRIEF)
    interrupted = threading.Event()
    give_up = Handover.give_up

    def interrupt(handover: Handover, **cleanup: Any) -> None:
        give_up(handover, **cleanup)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupted.wait(PATIENCE)

    def handler(*_: object) -> None:
        interrupted.set()
        raise _Interrupted

    monkeypatch.setattr(Handover, "give_up", interrupt)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(_Interrupted) as caught:
            migrate_out(traveller.pid, CriuOpts(), to=there.place, mode=mode, **BRIEF)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert "it runs at the destination" in "".join(caught.value.__notes__)
    assert "result" in there.until("result", "error")
    assert not is_alive(traveller.pid)
    assert is_alive(there.inside(traveller.pid))


@BOTH
def test_a_killed_criu_after_the_end(
    arrive: Arrive, traveller: Target, mode: MigrationMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel resumes the process then: it is ended, since its copy runs at the destination."""
    there = arrive(arguments=BRIEF)
    give_up = Handover.give_up

    def give_up_and_kill(handover: Handover, **cleanup: Any) -> None:
        give_up(handover, **cleanup)
        kill(next(pid for pid in children() if b"criu: dump" in _command(pid)))

    monkeypatch.setattr(Handover, "give_up", give_up_and_kill)
    with pytest.raises(WorkerDiedError) as caught:
        migrate_out(traveller.pid, CriuOpts(), to=there.place, mode=mode, **BRIEF)
    assert "it runs at the destination" in "".join(caught.value.__notes__)
    assert not is_alive(traveller.pid)
    assert "result" in there.until("result", "error")
    assert is_alive(there.inside(traveller.pid))


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _is_lazy_daemon(pid: int) -> bool:
    return b"lazy-pages" in _command(pid)


@BOTH
@pytest.mark.parametrize("when", ["images", pytest.param("go", marks=pytest.mark.long)])
def test_the_network_goes(
    arrive: Arrive,
    traveller: Target,
    cut: Callable[[], None],
    mode: MigrationMode,
    when: str,
) -> None:
    """Both sides detect it, and only one of the two processes remains."""
    checksum = traveller.ask("checksum")

    def hook(notification: Notification) -> None:
        if when == "images" and notification.action is Notify.POST_DUMP:
            cut()

    there = arrive(arguments=BRIEF, wait_at="pre-resume" if when == "go" else None)
    if when == "images":
        with pytest.raises(PeerLostError, match="nothing was received"):
            migrate_out(
                traveller.pid, CriuOpts(), to=there.place, mode=mode, on_notify=hook, **BRIEF
            )
    else:
        leaving = Leaving(traveller, there, mode=mode, **BRIEF)
        _until(there, "pre-resume")
        copy = there.inside(traveller.pid)
        cut()
        there.go_on()
        _never_both(leaving, traveller.pid, copy)
        assert isinstance(leaving.join(), PeerLostError)
    message = there.until("result", "error")
    if mode.lazy or when == "images":
        assert message["error"] != "MigrationInDoubtError", message
        _is_clean(there)
    elif "result" not in message and message["error"] == "MigrationInDoubtError":
        # Its final message was lost: the copy is stopped, and the call reports it.
        assert state(there.inside(traveller.pid)) == "T"
        assert f"kill -KILL {traveller.pid}" in message["message"]
    else:
        _is_clean(there)
    _is_whole(traveller, checksum)


@needs_lazy_pages
def test_an_interruption_while_pages_come(arrive: Arrive, traveller: Target, slow: None) -> None:
    """After Ctrl-C the destination's copy is ended before the source's process continues."""
    checksum = traveller.ask("checksum")
    there = arrive(arguments=BRIEF)

    def interrupt() -> None:
        _until(there, "post-resume")
        os.kill(os.getpid(), signal.SIGUSR1)

    def handler(*_: object) -> None:
        raise _Interrupted

    helper = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        helper.start()
        with pytest.raises(_Interrupted):
            migrate_out(
                traveller.pid, CriuOpts(), to=there.place, mode=MigrationMode.POST_COPY, **BRIEF
            )
        helper.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert there.until("result", "error")["error"] == "MigrationError"
    _is_clean(there)
    _is_whole(traveller, checksum)


@pytest.mark.long
@needs_lazy_pages
def test_a_deadline_while_pages_come(arrive: Arrive, traveller: Target, slow: None) -> None:
    """The deadline applies to the whole migration; the process then continues at the source."""
    checksum = traveller.ask("checksum")
    there = arrive(arguments=BRIEF)
    with pytest.raises(DeadlineError):
        migrate_out(
            traveller.pid,
            CriuOpts(),
            to=there.place,
            mode=MigrationMode.POST_COPY,
            deadline=2.5,
            **BRIEF,
        )
    assert "error" in there.until("result", "error")
    _is_clean(there)
    _is_whole(traveller, checksum)
