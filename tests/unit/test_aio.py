"""The verbs for asyncio: signatures, concurrency, hooks, and cancelled tasks."""

from __future__ import annotations

import asyncio
import inspect
import threading
from pathlib import Path

import pytest

import pycriu_native
from pycriu_native import CriuOpts, Notification, Verb, aio
from pycriu_native._calls.iterative_dump import Round
from pycriu_native.testing import ScriptedCriu, write_images
from tests.unit.support import bystander


@pytest.fixture(autouse=True)
def _images(tmp_path: Path) -> None:
    """Options of a restore."""
    write_images(tmp_path)


PARENT = bystander.PID


def test_every_verb() -> None:
    """Each verb of ``aio`` is a coroutine function with the arguments of the blocking verb."""
    assert set(aio.__all__) >= {str(verb).replace("-", "_") for verb in Verb} - {"lazy_pages"}
    for name in aio.__all__:
        awaited, verb = getattr(aio, name), getattr(pycriu_native, name)
        assert inspect.iscoroutinefunction(awaited)
        assert inspect.signature(awaited) == inspect.signature(verb)


def test_many_at_once(tmp_path: Path) -> None:
    """Each call has its own thread: none waits for the hook of another."""
    criu = ScriptedCriu(notify={"restore": ["pre-restore"]})
    together = asyncio.Barrier(40)

    async def hook(_: Notification) -> None:
        await together.wait()

    async def run() -> list[int]:
        opts = CriuOpts(images_directory=tmp_path)
        results = await asyncio.gather(
            *(aio.restore(opts, via=criu, on_notify=hook) for _ in range(40))
        )
        return [result.pid for result in results]

    assert asyncio.run(run()) == [1234] * 40


def test_the_hook_runs_in_the_task(tmp_path: Path) -> None:
    """The hook runs in the task that awaits the verb, and its exception is raised there."""
    criu = ScriptedCriu(notify={"restore": ["pre-restore"]})
    seen: list[object] = []

    async def hook(_: Notification) -> None:
        seen.append((asyncio.current_task(), threading.get_ident()))
        raise LookupError("no")

    async def run() -> None:
        with pytest.raises(LookupError, match="no"):
            await aio.restore(CriuOpts(images_directory=tmp_path), via=criu, on_notify=hook)
        assert seen == [(asyncio.current_task(), threading.get_ident())]

    asyncio.run(run())


def test_a_cancel_between_the_rounds(tmp_path: Path) -> None:
    """After a cancel, a verb of many calls starts no further call; completed ones stay."""
    criu = ScriptedCriu()
    opts = CriuOpts(images_directory=tmp_path)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        cancelled = threading.Event()

        def should_continue(round: Round) -> bool:
            def cancel() -> None:
                task.cancel()
                loop.call_soon(lambda: loop.call_soon(cancelled.set))

            if round.number == 2:
                loop.call_soon_threadsafe(cancel)
                cancelled.wait()
            return True

        task = asyncio.create_task(aio.dump_iters(PARENT, opts, should_continue, via=criu))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert [sent.verb for sent in criu.sent if sent.verb in ("dump", "pre-dump")] == [
        "pre-dump"
    ] * 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["1", "2"]


def test_a_cancel_that_is_too_late(tmp_path: Path) -> None:
    """If all calls are complete, the cancellation is raised with the result."""
    opts = CriuOpts(images_directory=tmp_path)

    async def run() -> None:
        while True:
            criu = ScriptedCriu(restored_pid=7)
            task = asyncio.create_task(aio.restore(opts, via=criu))
            while not criu.sent:
                await asyncio.sleep(0)
            threads = [thread for thread in threading.enumerate() if thread.name == "criu verb"]
            for thread in threads:
                thread.join()  # it has ended; the task has not been told yet
            if task.cancel():
                break  # otherwise the task had ended too
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.result.pid == 7  # type: ignore[attr-defined]

    asyncio.run(run())


def test_a_loop_that_ends_without_the_task(tmp_path: Path) -> None:
    """The call is undone when its coroutine is closed, also while its hook waits."""
    criu = ScriptedCriu(notify={"restore": ["pre-restore"]})
    began = asyncio.Event()

    async def hook(_: Notification) -> None:
        began.set()
        await asyncio.Event().wait()

    opts = CriuOpts(images_directory=tmp_path)
    waiting, begun = (aio.restore(opts, via=criu, on_notify=each) for each in (hook, None))

    async def begin() -> None:
        await began.wait()
        begun.send(None)

    loop = asyncio.new_event_loop()
    task = loop.create_task(waiting)
    loop.run_until_complete(begin())
    loop.close()
    assert not task.done()
    waiting.close()
    begun.close()
    assert [each for each in threading.enumerate() if each.name == "criu verb"] == []
