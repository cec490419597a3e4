"""Progress of dumps, restores and migrations, as ``on_progress`` receives it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import (
    CriuOpts,
    LazyPages,
    MigrationMode,
    NoSuchProcessError,
    Notification,
    Notify,
    Progress,
    dump,
    dump_iters,
    migrate_out,
    page_server_child,
    restore,
)
from pycriu_native._calls.progress import lazy_bytes, received_by

from ..unit.support.image_sets import LAZY, PRESENT, image_set, page
from .conftest import Spawn
from .support.features import needs_lazy_pages, needs_soft_dirty
from .support.processes import Target, eventually
from .test_migration import Arrive, arrive, far, traveller

__all__ = ["arrive", "far", "traveller"]

MIB = 2**20
LARGE = "memory = bytearray(b'x' * 2**26)\nserve(size=lambda: len(memory))"


class Reports(list[Progress]):
    """The reports of one call, in order."""

    def hold(self, notification: Notification) -> None:
        """Delay start and end of a dump, and the end of a restore, until they are reported."""
        if notification.action in (Notify.PRE_DUMP, Notify.POST_DUMP, Notify.POST_RESTORE):
            enough = len(self) + 2  # the next report can have been measured before
            eventually(lambda: len(self) >= enough, f"a report at {notification.action}")


def _is_sound(reports: Sequence[Progress], phase: str) -> None:
    assert {one.phase for one in reports} == {phase}
    done = [one.done for one in reports]
    assert done == sorted(done)
    assert reports[0].left is None
    assert reports[-1].left == 0
    assert reports[-1].done == reports[-1].total
    assert any(one.rate > 0 for one in reports)


def test_a_dump_and_a_restore(spawn: Spawn, images: Path) -> None:
    """``done`` grows to ``total``, which comes from the process and from the images."""
    target = spawn(LARGE)
    message = Reports()
    opts = CriuOpts(images_directory=images)
    dump(target.pid, opts, on_notify=message.hold, on_progress=message.append)
    _is_sound(message, "dump")
    size = sum(path.stat().st_size for path in images.glob("pages-*.img"))
    assert message[0].done == 0
    assert message[0].total is not None
    assert abs(message[0].total - size) < 8 * MIB
    assert message[-1].done == size > 64 * MIB
    target.reap()
    message.clear()
    restore(opts, on_notify=message.hold, on_progress=message.append)
    _is_sound(message, "restore")
    assert {one.total for one in message} == {size}
    assert any(one.done > 60 * MIB for one in message[:-1])
    assert target.ask("size") == 64 * MIB


def test_what_the_callback_raises(
    spawn: Spawn, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The exception is logged, the call continues, and the callback is not called again."""
    target = spawn()
    calls = []

    def broken(progress: Progress) -> None:
        calls.append(progress)
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "pycriu_native"):
        opts = CriuOpts(images_directory=images, leave_running=True)
        dump(target.pid, opts, on_notify=lambda _: time.sleep(0.3), on_progress=broken)
    assert len(calls) == 1
    assert "on_progress raised" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert target.runs_on()


def test_a_dump_that_fails(images: Path) -> None:
    """A failed dump reports no end and raises its own error."""
    message: list[Progress] = []
    with pytest.raises(NoSuchProcessError):
        dump(2**22 + 1, CriuOpts(images_directory=images), on_progress=message.append)
    assert all(one.left is None for one in message)


@needs_lazy_pages
def test_a_migration(arrive: Arrive, traveller: Target) -> None:
    """Each phase is reported with its bytes."""
    message = Reports()
    there = arrive()
    result = migrate_out(
        traveller.pid,
        CriuOpts(),
        to=there.place,
        mode=MigrationMode.POST_COPY,
        insecure=True,
        on_notify=message.hold,
        on_progress=message.append,
    )
    assert there.until("result", "error").get("result") == result.pid
    phases = list(dict.fromkeys(one.phase for one in message))
    assert phases == [name for name in result.phases if name in phases] + ["done"]
    assert "dump" in phases
    assert message[-1].left == 0


@needs_soft_dirty
def test_a_dump_in_rounds(spawn: Spawn, images: Path) -> None:
    """Each round is a phase; the total of later rounds is unknown."""
    target = spawn(LARGE)
    message = Reports()
    opts = CriuOpts(images_directory=images, leave_running=True)
    dump_iters(
        target.pid,
        opts,
        lambda round: round.number < 2,
        on_notify=message.hold,
        on_progress=message.append,
    )
    assert list(dict.fromkeys(one.phase for one in message)) == ["round 1", "round 2", "dump"]
    assert {one.total for one in message if one.phase == "round 1"} != {None}
    assert [one.left for one in message].count(0) == 1
    assert message[-1].left == 0


@needs_lazy_pages
def test_memory_that_comes_after_the_process(spawn: Spawn, images: Path) -> None:
    """The daemon's ``done`` grows to the size of the pages in the images."""
    target = spawn(LARGE)
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    size = sum(path.stat().st_size for path in images.glob("pages-*.img"))
    message: list[Progress] = []
    with LazyPages(opts) as daemon:
        with pytest.raises(TimeoutError):
            daemon.wait(0.6, on_progress=message.append)
        assert message[0].done < 8 * MIB  # it has read only page maps so far
        assert all(one.left != 0 for one in message)
        message.clear()
        restore(CriuOpts(images_directory=images, lazy_pages=True))
        assert daemon.wait(60, on_progress=message.append) == 0
    assert {one.phase for one in message} == {"lazy-pages"}
    assert {one.total for one in message} == {size}
    done = [one.done for one in message]
    assert done == sorted(done)
    assert (message[-1].done, message[-1].left) == (size, 0)
    assert target.ask("size") == 64 * MIB


def test_pages_that_a_server_takes(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """``done`` is the size of the pages in its directory; ``total`` is unknown before the end."""
    target = spawn(LARGE)
    message: list[Progress] = []
    there = tmp_path / "there"
    with page_server_child(
        CriuOpts(images_directory=there, page_server=("127.0.0.1", 0))
    ) as server:
        with pytest.raises(TimeoutError):
            server.wait(0.01, on_progress=message.append)
        assert {one.done for one in message} == {0}
        elsewhere = CriuOpts(images_directory=images, page_server=("127.0.0.1", server.result.port))
        dump(target.pid, replace(elsewhere, leave_running=True))
        assert server.wait(20, on_progress=message.append) == 0
    size = sum(path.stat().st_size for path in there.glob("pages-*.img"))
    assert {one.phase for one in message} == {"page-server"}
    assert all(one.total is None for one in message[:-1])
    assert message[-1].done == message[-1].total == size > 64 * MIB
    assert message[-1].left == 0


def test_a_server_that_ends_badly(images: Path) -> None:
    """A server that is killed reports no end."""
    message: list[Progress] = []
    opts = CriuOpts(images_directory=images, page_server=("127.0.0.1", 0))
    with page_server_child(opts) as server:
        os.kill(server.result.pid, signal.SIGKILL)
        assert server.wait(20, on_progress=message.append) == -signal.SIGKILL
    assert all(one.left is None for one in message)


@needs_lazy_pages
def test_what_there_is_to_come_is_what_comes(
    arrive: Arrive, traveller: Target, tmp_path: Path
) -> None:
    """The page maps of a lazy dump have the number of bytes that the destination will receive."""
    images = tmp_path / "there"
    there = arrive(opts={"images_directory": str(images)})
    result = migrate_out(
        traveller.pid, CriuOpts(), to=there.place, mode=MigrationMode.POST_COPY, insecure=True
    )
    assert there.until("result", "error").get("result") == result.pid
    to_come = lazy_bytes(str(images / "1"))
    assert 16 * MIB < to_come <= result.page_bytes < to_come * 1.2


def test_received_bytes(spawn: Spawn) -> None:
    """Received bytes are counted on the process's connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        target = spawn(
            f"""
            import socket
            line = socket.create_connection(("127.0.0.1", {port}))
            serve(take=lambda: len(line.recv(100_000, socket.MSG_WAITALL)))
            """
        )
        line, _ = listener.accept()
        with line:
            assert received_by(target.pid) == 0
            line.sendall(bytes(100_000))
            assert target.ask("take") == 100_000
            assert received_by(target.pid) == 100_000


def test_what_is_to_come_from_elsewhere(tmp_path: Path) -> None:
    """The pages that the page maps list and no pages file holds."""
    image_set(tmp_path, [(0, 2, PRESENT), (2, 3, LAZY), (8, 1, LAZY)], page("a") + page("b"))
    assert lazy_bytes(str(tmp_path)) == 4 * len(page("a"))
