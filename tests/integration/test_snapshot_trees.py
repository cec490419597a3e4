"""Snapshots of copies: a started copy parks again, and is saved again."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from pycriu_native import CriuError, DeadlineError, OptionError
from pycriu_native.snapshots import Process, Snapshot

from .support.processes import PATIENCE, children
from .test_snapshots import ENVIRONMENT

PROGRAM = """
import json, os, random, sys
from pycriu_native import guest
history = []
blocks = [bytes([number % 256]) * 5000 for number in range(2000)]
while True:
    start = guest.wait()
    history.append((start.number, sys.argv[1:]))
    for line in iter(sys.stdin.readline, "park\\n"):
        if not line:
            sys.exit(len(history))
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        whole = blocks == [bytes([number % 256]) * 5000 for number in range(2000)]
        print(json.dumps([history, random.random(), pids, whole]), flush=True)
"""


@pytest.fixture
def snapshot(tmp_path: Path) -> Iterator[Snapshot]:
    """A snapshot of the program."""
    command = [sys.executable, "-c", PROGRAM]
    with Snapshot.take(command, tmp_path / "first", env=ENVIRONMENT) as result:
        yield result


def started(snapshot: Snapshot, *args: str, **options: Any) -> Process[str]:
    """A copy that may be saved."""
    streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "text": True, "savable": True}
    return snapshot.start(args, **{**streams, **options})


def say(process: Process[str], line: str) -> None:
    """Write a line to a copy."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def state_of(process: Process[str]) -> list[Any]:
    """The history of a copy, a random number, its pids, and whether its memory is whole."""
    say(process, "state")
    assert process.stdout is not None
    result: list[Any] = json.loads(process.stdout.readline())
    return result


def taken(process: Process[str], directory: Path, **options: Any) -> Snapshot:
    """A snapshot of a copy, which parks."""
    say(process, "park")
    return Snapshot.take(process, directory, deadline=PATIENCE, **options)


@pytest.mark.parametrize("share_memory", [False, True])
def test_generations(snapshot: Snapshot, tmp_path: Path, share_memory: bool) -> None:
    """Each goes on where its parent was, with its memory; the parents can be started as before."""
    with started(snapshot, "a", share_memory=share_memory) as first:
        state_of(first)
        with taken(first, tmp_path / "second") as second:
            assert first.wait(PATIENCE) == -signal.SIGKILL
            assert second.record.forks
            with started(second, "b", share_memory=share_memory) as other:
                state_of(other)
                third = taken(other, tmp_path / "third")
            snapshot.remove()
            with third, started(third, "c") as one, started(third, "d") as two:
                seen = [state_of(each) for each in (one, two)]
                assert [each[0] for each in seen] == [
                    [[1, ["a"]], [1, ["b"]], [1, ["c"]]],
                    [[1, ["a"]], [1, ["b"]], [2, ["d"]]],
                ]
                assert seen[0][1] != seen[1][1]
                assert [each[2:] for each in seen] == [[[1, third.record.pid], True]] * 2
            assert one.returncode == 3
            with started(second, "e") as again:
                assert state_of(again)[0] == [[1, ["a"]], [2, ["e"]]]


def test_it_goes_on(snapshot: Snapshot, tmp_path: Path) -> None:
    """With leave_running, with its own /proc, and can be saved once more."""
    with started(snapshot, "a") as process:
        second = taken(process, tmp_path / "second", leave_running=True)
        assert state_of(process)[0] == [[1, ["a"]], [0, ["a"]]]
        assert state_of(process)[2] == [1, snapshot.record.pid]
        third = taken(process, tmp_path / "third", leave_running=True)
        with started(second) as one, started(third) as two:
            assert [len(state_of(each)[0]) for each in (one, two, process)] == [2, 3, 3]
    assert process.returncode == 3


def test_streams(snapshot: Snapshot, tmp_path: Path) -> None:
    """Files and sockets that a copy had are replaced in the copies of it; it can be a zygote."""
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        open(tmp_path / "errors", "w") as errors,
        snapshot.start(stdin=theirs, stdout=DEVNULL, stderr=errors, savable=True) as process,
    ):
        theirs.close()
        ours.sendall(b"park\n")
        second = Snapshot.take(process, tmp_path / "second", deadline=PATIENCE)
    with second, started(second, "x", stderr=DEVNULL) as other:
        assert state_of(other)[0] == [[1, []], [1, ["x"]]]
        assert other.communicate(timeout=PATIENCE) == ("", None)
    with (
        open(tmp_path / "more", "w") as more,
        pytest.raises(OptionError, match="no file or socket"),
    ):
        second.start(stderr=more)
    with (
        second.zygote() as zygote,
        zygote.start(["y"], stdin=PIPE, stdout=PIPE, text=True) as forked,
    ):
        assert state_of(forked)[0][-1][1] == ["y"]


def test_copies_that_cannot_be_saved(snapshot: Snapshot, tmp_path: Path) -> None:
    """They run on, with their own /proc; nothing is left."""
    target = tmp_path / "second"
    with started(snapshot, savable=False) as process:
        with pytest.raises(OptionError, match="started with savable=True"):
            Snapshot.take(process, target)
        state_of(process)
    with started(snapshot, hostname="other") as process:
        with pytest.raises(OptionError, match="a host name or a network"):
            Snapshot.take(process, target)
        state_of(process)
    with started(snapshot) as process:
        with pytest.raises(OptionError, match="where it calls"):
            Snapshot.take(process, target, without_guest=True)
        with pytest.raises(OptionError, match="accepted with a command only"):
            Snapshot.take(process, target, env={})
        with pytest.raises(DeadlineError, match="has not called"):
            Snapshot.take(process, target, deadline=0.1)
        state_of(process)
    with started(snapshot) as process:
        assert process.stdin is not None
        process.stdin.close()
        with pytest.raises(CriuError, match="the copy ended"):
            Snapshot.take(process, target, deadline=PATIENCE)
    assert not target.exists()


def test_a_dump_that_fails(snapshot: Snapshot, tmp_path: Path) -> None:
    """The copy stays parked with its own /proc, and can be saved without what was wrong."""
    with started(snapshot) as process:
        say(process, "park")
        (tmp_path / "file").touch()
        before = children()
        with pytest.raises(CriuError):
            Snapshot.take(process, tmp_path / "file" / "below", deadline=PATIENCE)
        assert children() == before
        second = Snapshot.take(process, tmp_path / "second", leave_running=True, deadline=PATIENCE)
        assert state_of(process)[2] == [1, snapshot.record.pid]
    with started(second) as other:
        assert state_of(other)[3]
