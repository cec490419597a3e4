"""Starts of copies that a signal's handler interrupts, as Ctrl-C does, and that leave nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pycriu_native import CriuError
from pycriu_native.snapshots import (
    Snapshot,
    SnapshotProcess,
    namespaces,
    restore,
    sharing,
    start_worker,
    uninterrupted,
)
from pycriu_native.snapshots import snapshot as snapshot_module

from .support.processes import PATIENCE, children, eventually

REPO = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO)}

PROGRAM = """
from pycriu_native import guest
guest.wait()
import signal; signal.pause()
"""


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A snapshot of a program that waits."""
    directory = tmp_path_factory.mktemp("snapshots") / "waits"
    return Snapshot.take([sys.executable, "-c", PROGRAM], directory, env=ENVIRONMENT)


@pytest.fixture
def snapshot(taken: Snapshot) -> Iterator[Snapshot]:
    """The snapshot; its first copy has been started, so that every start takes the same steps."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with taken:
            kill(taken.start())
            yield taken
    finally:
        signal.signal(signal.SIGINT, handler)


def kill(process: SnapshotProcess[Any]) -> None:
    """End a copy."""
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL


def interrupting(function: Callable[..., Any], times: list[int]) -> Callable[..., Any]:
    """The function; the main thread gets SIGINT when it has worked, and before it returns."""

    def replaced(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if times:
            times.pop()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return result

    return replaced


STEPS: list[tuple[ModuleType | type, str]] = [
    (namespaces, "spawn"),
    (namespaces.Namespaces, "open"),
    (namespaces.Namespaces, "expect"),
    (namespaces.Namespaces, "wait_until_ready"),
    (namespaces.Namespaces, "restored"),
    (start_worker.StartWorker, "connect"),
    (start_worker._Guard, "end"),
    (sharing.Sharing, "chosen"),
    (snapshot_module.Snapshot, "_next_number"),
    (restore, "restore_child"),
    (restore, "RestoredChild"),
    (restore, "send_line"),
    (restore, "SnapshotProcess"),
    (snapshot_module, "start_copy"),
]
"""Steps of a start."""


@pytest.mark.parametrize("share_memory", [False, True], ids=["plain", "shared"])
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[f"{o.__name__}.{n}" for o, n in STEPS])
def test_a_start_that_is_interrupted(
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    share_memory: bool,
) -> None:
    """The exception of the handler is raised, and no process and no descriptor remains."""
    kill(snapshot.start(share_memory=share_memory))  # the fork server remains
    before = children()
    times = [1]
    monkeypatch.setattr(owner, name, interrupting(getattr(owner, name), times))
    with pytest.raises(KeyboardInterrupt):
        snapshot.start(share_memory=share_memory)
    assert times == []
    eventually(lambda: children() == before, "the end of the copy")
    kill(snapshot.start(share_memory=share_memory))


def test_a_start_that_is_interrupted_often(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception is raised after the start was undone."""
    kill(snapshot.start(share_memory=False))
    before = children()
    times = [1, 1, 1]
    for name in ("expect", "open"):
        method = getattr(namespaces.Namespaces, name)
        monkeypatch.setattr(namespaces.Namespaces, name, interrupting(method, times))
    with pytest.raises(KeyboardInterrupt):
        snapshot.start(share_memory=False)
    assert times == [1]  # the start was undone after the second of these steps
    eventually(lambda: children() == before, "the end of the copy")


def test_a_result_after_an_interruption() -> None:
    """A result that comes nevertheless is undone, and an error is the cause of the exception."""
    undone: list[str] = []
    main = threading.main_thread().ident or 0

    def succeed() -> str:
        signal.pthread_kill(main, signal.SIGINT)
        until_interrupted()
        return "result"

    def fail() -> str:
        raise CriuError(succeed())

    def until_interrupted() -> None:
        eventually(lambda: work[-1]._reason is not None, "the interruption")

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    work: list[uninterrupted._Work[str]] = []
    try:
        for function in (succeed, fail):
            work.append(uninterrupted._Work(function, undone.append))
            with pytest.raises(KeyboardInterrupt) as raised:
                work[-1].run()
        assert str(raised.value.__cause__) == "result"
    finally:
        signal.signal(signal.SIGINT, handler)
    assert undone == ["result"]


def test_namespaces_that_were_closed_before() -> None:
    """A thread that begins to wait for them after the end of a short copy waits for nothing."""
    made = namespaces.Namespaces()
    made.close()
    reader, writer = os.pipe()
    try:
        assert not made.wait_for_end(reader)
    finally:
        os.close(reader)
        os.close(writer)
