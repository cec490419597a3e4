"""The calls for asyncio: awaited, concurrent, with coroutine hooks, and cancelled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, DeadlineError, Notification, Notify, aio

from .conftest import Spawn
from .support.processes import state


def test_dump_and_restore(spawn: Spawn, images: Path) -> None:
    """The results are those of the blocking calls."""
    target = spawn()
    opts = CriuOpts(images_directory=images)

    async def run() -> int:
        assert (await aio.dump(target.pid, opts)).pid == target.pid
        target.reap()
        return (await aio.restore(opts)).pid

    assert asyncio.run(run()) == target.pid
    assert target.runs_on()


def test_the_event_loop_runs_meanwhile(spawn: Spawn, images: Path) -> None:
    """Other tasks run while CRIU works and while the hook awaits."""
    target = spawn()
    beats = 0
    seen: list[int] = []

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    async def hook(notification: Notification) -> None:
        before = beats
        await asyncio.sleep(0.01)
        seen.append(beats - before)

    async def run() -> None:
        task = asyncio.create_task(beat())
        opts = CriuOpts(images_directory=images, leave_running=True)
        await aio.dump(target.pid, opts, on_notify=hook)
        task.cancel()

    asyncio.run(run())
    assert seen
    assert all(count > 0 for count in seen)


def test_many_at_once(spawn: Spawn, tmp_path: Path) -> None:
    """Eight dumps run concurrently in one gather."""
    targets = [spawn() for _ in range(8)]

    async def run() -> None:
        await asyncio.gather(
            *(
                aio.dump(
                    target.pid,
                    CriuOpts(
                        images_directory=tmp_path / f"images-{target.pid}", leave_running=True
                    ),
                )
                for target in targets
            )
        )

    asyncio.run(run())
    for target in targets:
        assert target.runs_on()
        assert (tmp_path / f"images-{target.pid}" / "inventory.img").exists()


def test_cancel_undoes(spawn: Spawn, images: Path) -> None:
    """When CancelledError is raised, the process runs again."""
    target = spawn()
    states: list[str] = []

    async def run() -> None:
        frozen = asyncio.Event()

        async def hook(notification: Notification) -> None:
            if notification.action is Notify.POST_DUMP:
                states.append(state(target.pid))
                frozen.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(
            aio.dump(target.pid, CriuOpts(images_directory=images), on_notify=hook)
        )
        await frozen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        states.append(state(target.pid))

    asyncio.run(run())
    assert states[0] == "t"
    assert states[1] in ("R", "S", "D")
    assert target.runs_on()


def test_a_timeout(spawn: Spawn, images: Path) -> None:
    """asyncio.timeout and a deadline have the same effect as a cancellation."""
    target = spawn()

    async def hook(notification: Notification) -> None:
        await asyncio.sleep(0.3)

    async def run() -> None:
        opts = CriuOpts(images_directory=images)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await aio.dump(target.pid, opts, on_notify=hook)
        assert state(target.pid) in ("R", "S", "D")
        with pytest.raises(DeadlineError):
            await aio.dump(target.pid, opts, on_notify=hook, deadline=0.05)

    asyncio.run(run())
    assert target.runs_on()
