"""A directory whose snapshot is replaced, or that is on a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from pycriu_native import ImagesError
from pycriu_native.snapshots import Snapshot
from pycriu_native.snapshots.record import Record

from .conftest import Spawn
from .support.processes import PATIENCE, children
from .test_snapshots import ENVIRONMENT

RANDOM = 2**52
"""The smallest number of a start without a counter."""


def take(directory: Path, text: str) -> Snapshot:
    """A snapshot of a program that prints a text and its number."""
    code = f"from pycriu_native import guest; text = {text!r} * 100000; "
    code += "start = guest.wait(); print(text[:3], start.number)"
    return Snapshot.take([sys.executable, "-c", code], directory, env=ENVIRONMENT)


def printed(start: Callable[..., Any], **options: Any) -> tuple[str, int]:
    """The text and the number of a copy."""
    with start(stdin=DEVNULL, stdout=PIPE, text=True, **options) as process:
        text, number = process.communicate(timeout=PATIENCE)[0].split()
        assert process.number == int(number)
    return text, int(number)


def replace(snapshot: Snapshot, other: Path) -> None:
    """Put another directory in the place of a snapshot."""
    snapshot.directory.rename(snapshot.directory.with_name("former"))
    other.rename(snapshot.directory)


def test_another_snapshot(tmp_path: Path) -> None:
    """Nothing of it is started or removed by the object that was opened before; its zygote starts
    further copies.
    """
    with take(tmp_path / "app", "old") as snapshot, take(tmp_path / "new", "new") as other:
        assert [printed(snapshot.start) for _ in range(2)] == [("old", 1), ("old", 2)]
        assert printed(other.start, share_memory=True) == ("new", 1)
        with snapshot.zygote() as zygote:
            replace(snapshot, other.directory)
            before = children()
            calls: list[Callable[[], Any]] = [
                snapshot.start,
                lambda: snapshot.start(share_memory=False),
                snapshot.zygote,
                snapshot.share,
                snapshot.remove,
            ]
            for call in calls:
                with pytest.raises(ImagesError, match="app has another snapshot than when it was"):
                    call()
            assert children() <= before
            assert printed(Snapshot(snapshot.directory).start) == ("new", 2)
            text, number = printed(zygote.start)
            assert (text, number >= RANDOM) == ("old", True)
            shutil.rmtree(snapshot.directory)
            text, number = printed(zygote.start)
            assert (text, number >= RANDOM) == ("old", True)


def test_the_same_snapshot(tmp_path: Path) -> None:
    """A copy of the directory in its place is started, and numbers continue."""
    with take(tmp_path / "app", "old") as snapshot:
        assert printed(snapshot.start) == ("old", 1)
        shutil.copytree(snapshot.directory, tmp_path / "copy")
        replace(snapshot, tmp_path / "copy")
        assert printed(snapshot.start) == ("old", 2)


def test_the_same_snapshot_without_its_template(tmp_path: Path) -> None:
    """The memory in a fork server does not fit the images of the template that is made anew."""
    with take(tmp_path / "app", "old") as snapshot:
        assert printed(snapshot.start, share_memory=True) == ("old", 1)
        shutil.copytree(
            snapshot.directory, tmp_path / "copy", ignore=shutil.ignore_patterns("shared")
        )
        replace(snapshot, tmp_path / "copy")
        assert printed(snapshot.start) == ("old", 2)
        assert printed(snapshot.start, share_memory=True) == ("old", 3)
        assert (snapshot.directory / "shared").is_dir()


@pytest.mark.parametrize("name", ["open", "pwrite"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A copy has a random number if the counter can neither be created nor written."""
    function = getattr(os, name)

    def full(first: Any, *rest: Any, **options: Any) -> Any:
        if name == "pwrite" or os.path.basename(first) == "starts":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(first, *rest, **options)

    with take(tmp_path / "app", "old") as snapshot:
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            numbers = [snapshot._next_number(None) for _ in range(2)]
        assert min(numbers) >= RANDOM
        assert len(set(numbers)) == 2
        assert printed(snapshot.start) == ("old", 1)


def test_a_disk_that_becomes_full(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for the last file of a snapshot has the directory, and the process continues."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = spawn(start_new_session=True)
    monkeypatch.setattr(Record, "write", full)
    with pytest.raises(ImagesError, match="app cannot be written: No space left on device") as no:
        Snapshot.take(target.pid, tmp_path / "app", without_guest=True)
    assert no.value.errno == errno.ENOSPC
    assert target.runs_on()
    assert not (tmp_path / "app").exists()


def test_an_error_of_the_images_keeps_its_message(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of this library is not that of a disk, though it is an ``OSError`` as well."""

    def damaged(*_: object) -> None:
        raise ImagesError("files.img is damaged")

    target = spawn(start_new_session=True)
    monkeypatch.setattr(Record, "write", damaged)
    with pytest.raises(ImagesError, match=r"files\.img is damaged"):
        Snapshot.take(target.pid, tmp_path / "app", without_guest=True)
    assert target.runs_on()


def test_two_snapshots_of_one_process(spawn: Spawn, tmp_path: Path) -> None:
    """They differ, also if they were taken within one second."""
    pid = spawn(start_new_session=True).pid
    records = [
        Snapshot.take(pid, tmp_path / name, without_guest=True, leave_running=True).record
        for name in ("one", "two")
    ]
    assert records[0] != records[1]
