"""Migrations with asyncio: the event loop is not blocked, hooks are coroutines, and cancellation
undoes a migration.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, MigrationMode, Notification, Notify, PeerLostError, aio
from pycriu_native.migration.control_channel import Channel, greet
from pycriu_native.migration.deadline import MigrationDeadline

from .support.processes import Target, eventually
from .test_migration import BOTH, Arrive, arrive, far, traveller

__all__ = ["arrive", "far", "traveller"]


@BOTH
def test_a_process_changes_hosts(arrive: Arrive, traveller: Target, mode: MigrationMode) -> None:
    """The hook is a coroutine of the task, and other tasks run at the same time."""
    checksum = traveller.ask("checksum")
    there = arrive()
    beats = 0
    seen: list[tuple[Notify | str, bool, int]] = []

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.001)

    async def hook(notification: Notification) -> None:
        here = threading.current_thread() is threading.main_thread()
        seen.append((notification.action, here, beats))
        await asyncio.sleep(0.01)

    async def run() -> int:
        task = asyncio.create_task(beat())
        result = await aio.migrate_out(
            traveller.pid, CriuOpts(), to=there.place, mode=mode, insecure=True, on_notify=hook
        )
        task.cancel()
        return result.pid

    assert asyncio.run(run()) == there.until("result", "error").get("result") == traveller.pid
    assert traveller.ask("checksum") == checksum
    assert traveller.runs_on()
    actions = [action for action, _, _ in seen]
    assert Notify.PRE_DUMP in actions
    assert Notify.POST_DUMP in actions
    assert all(here for _, here, _ in seen)
    assert seen[-1][2] > seen[0][2]


def test_a_hook_that_refuses(arrive: Arrive, traveller: Target) -> None:
    """The exception of the hook is raised, and the process continues at the source."""
    there = arrive()

    async def hook(notification: Notification) -> None:
        if notification.action is Notify.POST_DUMP:
            raise LookupError("not today")

    async def run() -> None:
        await aio.migrate_out(
            traveller.pid, CriuOpts(), to=there.place, insecure=True, on_notify=hook
        )

    with pytest.raises(LookupError, match="not today"):
        asyncio.run(run())
    assert "error" in there.until("result", "error")
    assert traveller.runs_on()


@contextmanager
def mute() -> Iterator[tuple[str, int]]:
    """A destination that accepts connections and never sends a message."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        channels: list[Channel] = []

        def body() -> None:
            sock, _ = server.accept()
            greet(sock)
            channels.append(
                Channel(
                    sock, peer_timeout=30, until=MigrationDeadline(), on_pages=lambda data: None
                )
            )

        thread = threading.Thread(target=body)
        thread.start()
        yield server.getsockname()
        thread.join()
        for channel in channels:
            channel.close()


def test_cancelled_while_it_waits_for_the_destination(traveller: Target) -> None:
    """The call ends soon, the process continues, and the exception has a note about it."""

    async def run(place: tuple[str, int]) -> None:
        task = asyncio.create_task(aio.migrate_out(traveller.pid, CriuOpts(), to=place))
        await asyncio.sleep(1)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert "the process continues at the source" in " ".join(caught.value.__notes__)

    before = threading.active_count()
    with mute() as place:
        asyncio.run(asyncio.wait_for(run(place), 30))
    assert traveller.runs_on()
    eventually(lambda: threading.active_count() <= before, "no threads of ours")


def test_cancelled_while_the_hook_awaits(arrive: Arrive, traveller: Target) -> None:
    """The dump is undone, and the destination has no copy."""
    there = arrive()
    waiting = asyncio.Event()

    async def hook(notification: Notification) -> None:
        if notification.action is Notify.POST_DUMP:
            waiting.set()
            await asyncio.sleep(1000)

    async def run() -> None:
        task = asyncio.create_task(
            aio.migrate_out(
                traveller.pid, CriuOpts(), to=there.place, insecure=True, on_notify=hook
            )
        )
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert "error" in there.until("result", "error")
    assert traveller.runs_on()


def test_a_timeout_before_a_source_connects(tmp_path: Path) -> None:
    """``asyncio.timeout`` ends the wait for a source, and nothing remains."""

    async def run() -> None:
        async with asyncio.timeout(0.3):
            opts = CriuOpts(images_directory=tmp_path / "images")
            await aio.migrate_in(opts, listen=("127.0.0.1", 0))

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    eventually(lambda: not (tmp_path / "images").exists(), "no directory")


def test_nobody_listens(traveller: Target) -> None:
    """An error of the migration is raised unchanged."""
    with pytest.raises(PeerLostError, match="no connection to the destination"):
        asyncio.run(aio.migrate_out(traveller.pid, CriuOpts(), to=("127.0.0.1", 9)))
    assert traveller.runs_on()
