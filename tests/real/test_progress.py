"""Progress of dumps, restores and migrations, as an observer beside the call sees it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pycriu_native import (
    CriuOpts,
    MigrationMode,
    NoSuchProcessError,
    Notification,
    Notify,
    Progress,
    dump,
    migrate_out,
    restore,
)

from .conftest import Spawn
from .features import needs_lazy_pages
from .processes import Target
from .test_migration import Arrive, arrive, far, large_pipes, traveller

__all__ = ["arrive", "far", "large_pipes", "traveller"]

MIB = 2**20
LARGE = "memory = bytearray(b'x' * 2**26)\nserve(size=lambda: len(memory))"


def hold(notification: Notification) -> None:
    """Give the observer a look at a dump that is written, and at a restore that is made."""
    if notification.action in (Notify.POST_DUMP, Notify.POST_RESTORE):
        time.sleep(0.6)


def _is_sound(told: Sequence[Progress], phase: str) -> None:
    assert {one.phase for one in told} == {phase}
    done = [one.done for one in told]
    assert done == sorted(done)
    assert told[0].left is None
    assert told[-1].left == 0
    assert told[-1].done == told[-1].total
    assert any(one.rate > 0 for one in told)


def test_a_dump_and_a_restore(spawn: Spawn, images: Path) -> None:
    """Bytes done grow to the bytes to do, which were known from the process and the images."""
    target = spawn(LARGE)
    told: list[Progress] = []
    opts = CriuOpts(images_directory=images)
    dump(target.pid, opts, on_notify=hold, on_progress=told.append)
    _is_sound(told, "dump")
    size = sum(path.stat().st_size for path in images.glob("pages-*.img"))
    assert told[0].done == 0
    assert told[0].total is not None
    assert abs(told[0].total - size) < 8 * MIB
    assert told[-1].done == size > 64 * MIB
    target.reap()
    told.clear()
    restore(opts, on_notify=hold, on_progress=told.append)
    _is_sound(told, "restore")
    assert {one.total for one in told} == {size}
    assert any(one.done > 60 * MIB for one in told[:-1])
    assert target.ask("size") == 64 * MIB


def test_what_the_callback_raises(
    spawn: Spawn, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its trace, breaks nothing, and the callback is left alone."""
    target = spawn()
    calls = []

    def broken(progress: Progress) -> None:
        calls.append(progress)
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "pycriu_native"):
        opts = CriuOpts(images_directory=images, leave_running=True)
        dump(target.pid, opts, on_notify=hold, on_progress=broken)
    assert len(calls) == 1
    assert "on_progress raised" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert target.runs_on()


def test_a_dump_that_fails(images: Path) -> None:
    """There is no end to tell of, and the error is the dump's own."""
    told: list[Progress] = []
    with pytest.raises(NoSuchProcessError):
        dump(2**22 + 1, CriuOpts(images_directory=images), on_progress=told.append)
    assert all(one.left is None for one in told)


@needs_lazy_pages
def test_a_migration(arrive: Arrive, traveller: Target) -> None:
    """Each phase is told of, with its bytes."""
    told: list[Progress] = []
    there = arrive()
    result = migrate_out(
        traveller.pid,
        CriuOpts(),
        to=there.place,
        mode=MigrationMode.POST_COPY,
        insecure=True,
        on_notify=hold,
        on_progress=told.append,
    )
    assert there.until("result", "error").get("result") == result.pid
    phases = list(dict.fromkeys(one.phase for one in told))
    assert phases == [name for name in result.phases if name in phases] + ["done"]
    assert "dump" in phases
    assert told[-1].left == 0
