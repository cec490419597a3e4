"""Copies of a snapshot from asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import json
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from subprocess import PIPE

import pytest

from pycriu_native import OptionError
from pycriu_native.snapshots import AsyncProcess, Snapshot, SnapshotProcess

from .support.processes import PATIENCE, children, eventually
from .test_snapshots import COMMAND, ENVIRONMENT


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A snapshot of guest_server.py."""
    directory = tmp_path_factory.mktemp("snapshots") / "server"
    return Snapshot.take(COMMAND, directory, env=ENVIRONMENT)


@pytest.fixture
def snapshot(taken: Snapshot) -> Iterator[Snapshot]:
    """The snapshot, which tests only start."""
    with taken:
        yield taken


async def ask(process: AsyncProcess, *question: object) -> object:
    """Send a request to a copy; returns the response."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question).encode() + b"\n")
    await process.stdin.drain()
    return json.loads(await process.stdout.readline())[1]


def test_many_at_once(snapshot: Snapshot) -> None:
    """Copies are started and used concurrently, and end with different statuses."""

    async def one(status: int) -> int:
        async with snapshot.start_async([str(status)], stdin=PIPE, stdout=PIPE) as process:
            seen = await ask(process, "identity")
            assert isinstance(seen, dict)
            assert seen["arguments"] == [str(status)]
            assert process.returncode is None
            out, errors = await process.communicate(b'["exit", %d]\n' % status)
            assert (out, errors) == (b"", None)
            assert process.returncode == status
            return await process.wait()

    async def main() -> list[int]:
        return await asyncio.gather(*map(one, (3, 4, 5)))

    assert asyncio.run(main()) == [3, 4, 5]


def test_an_executor_that_is_busy(snapshot: Snapshot) -> None:
    """The end of a copy needs no thread of the loop's executor."""

    async def main() -> int:
        over = threading.Event()
        executor = concurrent.futures.ThreadPoolExecutor(1)
        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor)
        process = await snapshot.start_async(stdin=PIPE)
        busy = loop.run_in_executor(None, over.wait)
        try:
            process.kill()
            return await asyncio.wait_for(process.wait(), PATIENCE)
        finally:
            over.set()
            await busy

    assert asyncio.run(main()) == -signal.SIGKILL


def test_awaited(snapshot: Snapshot) -> None:
    """A copy is used without ``async with``: signals, and much data in both directions."""

    async def main() -> None:
        process = await snapshot.start_async(stdin=PIPE, stdout=PIPE, stderr=PIPE)
        text = "x" * 300_000
        out, errors = await process.communicate(json.dumps(["errors", text]).encode() + b"\n")
        assert errors == text.encode() + b"\n"
        assert out == b"[%d, null]\n" % process.number
        process = await snapshot.start_async(stdin=PIPE)
        process.terminate()
        assert await process.wait() == -signal.SIGTERM
        await process.aclose()

    asyncio.run(main())


LOOP = """
import asyncio, concurrent.futures, gc, pathlib, sys
from pycriu_native.snapshots import Snapshot

async def use():
    async with Snapshot(sys.argv[1]).start_async():
        pass

executor = concurrent.futures.ThreadPoolExecutor(1)
loop = asyncio.new_event_loop()
loop.set_default_executor(executor)
task = loop.create_task(use())
loop.run_until_complete(asyncio.sleep(0))
loop.run_until_complete(asyncio.sleep(0))
if sys.argv[2] == "started":
    executor.shutdown()
loop.close()
executor.shutdown()
del loop, task
gc.collect()
for path in pathlib.Path("/proc/self/task").glob("*/children"):
    print(path.read_text(), end="")
"""


@pytest.mark.parametrize("when", ["starting", "started"])
def test_a_loop_that_ends(snapshot: Snapshot, when: str) -> None:
    """A task that is pending when its loop is closed is collected, and the copy is ended."""
    command = [sys.executable, "-c", LOOP, str(snapshot.directory), when]
    done = subprocess.run(command, stdout=PIPE, timeout=PATIENCE, env=ENVIRONMENT)
    assert done.stdout == b""
    assert done.returncode == 0


def test_no_reference_cycle(snapshot: Snapshot) -> None:
    """A copy is deleted with the last reference to it, without the garbage collector."""

    async def main() -> weakref.ref[object]:
        async with snapshot.start_async() as process:
            process.kill()
        return weakref.ref(process.process)

    gc.disable()
    try:
        assert asyncio.run(main())() is None
    finally:
        gc.enable()


def test_an_executor_that_drops_the_start(snapshot: Snapshot) -> None:
    """The start is cancelled."""

    async def main() -> None:
        executor = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(executor)
        over = threading.Event()
        executor.submit(over.wait)
        starting = asyncio.ensure_future(wait(snapshot))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        executor.shutdown(wait=False, cancel_futures=True)
        over.set()
        with pytest.raises(asyncio.CancelledError):
            await starting

    async def wait(snapshot: Snapshot) -> None:
        await snapshot.start_async()

    asyncio.run(main())


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.05, 0.3])
def test_a_cancelled_start_leaves_nothing(snapshot: Snapshot, seconds: float) -> None:
    """A task can be cancelled at any time."""
    before = children()

    async def main() -> None:
        async def one() -> None:
            async with snapshot.start_async(stdin=PIPE, stdout=PIPE) as process:
                await process.wait()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one(), seconds)

    asyncio.run(main())
    eventually(lambda: children() <= before, "its end")


def test_an_exception_in_the_block_ends_the_copy(snapshot: Snapshot) -> None:
    """An exception in the block, such as that of a timeout, ends the copy."""

    async def main() -> int | None:
        with pytest.raises(TimeoutError):
            async with snapshot.start_async(stdin=PIPE, stdout=PIPE) as process:
                await asyncio.wait_for(process.communicate(b'["sleep", 1000]\n'), 0.1)
        return process.returncode

    assert asyncio.run(asyncio.wait_for(main(), 60)) == -signal.SIGKILL


def test_what_is_refused(snapshot: Snapshot) -> None:
    """Text mode, and arguments that start refuses."""

    async def main() -> None:
        with pytest.raises(OptionError, match="binary"):
            snapshot.start_async(text=True)
        with pytest.raises(OptionError, match="cwd="):
            await snapshot.start_async(cwd="relative")

    asyncio.run(main())


@pytest.mark.parametrize("poll", ["kill", "poll"])
def test_an_end_that_the_loop_has_not_seen(snapshot: Snapshot, poll: str) -> None:
    """The loop sees the end of a copy that was polled before, and of later copies."""

    async def main() -> None:
        with snapshot.zygote() as zygote:
            for status in range(3):
                process = await zygote.start_async(stdin=PIPE)
                assert process.stdin is not None
                process.stdin.write(b'["exit", %d]\n' % status)
                await process.stdin.drain()
                assert select.select([process.process.pidfd], [], [], PATIENCE)[0]
                process.kill() if poll == "kill" else process.process.poll()
                assert await asyncio.wait_for(process.wait(), PATIENCE) == status
                await process.aclose()

    asyncio.run(main())


def test_the_loop_continues_while_the_copy_ends(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of all processes of a copy is not awaited on the loop's thread."""
    threads = []
    wait = SnapshotProcess.wait

    def seen(process: SnapshotProcess[bytes], timeout: float | None = None) -> int:
        threads.append(threading.current_thread())
        return wait(process, timeout)

    monkeypatch.setattr(SnapshotProcess, "wait", seen)

    async def main() -> None:
        async with snapshot.start_async(stdin=PIPE) as process:
            process.kill()
        process = await snapshot.start_async(stdin=PIPE)
        await process.communicate(b'["exit", 0]\n')

    asyncio.run(main())
    assert threads
    assert threading.main_thread() not in threads


def test_the_limit_of_a_line(snapshot: Snapshot) -> None:
    """The limit of the readers is that of ``asyncio.create_subprocess_exec``."""

    async def main(limit: int) -> int:
        async with snapshot.start_async(stdin=PIPE, stderr=PIPE, limit=limit) as process:
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.write(json.dumps(["errors", "x" * 99_999]).encode() + b"\n")
            return len(await process.stderr.readline())

    assert asyncio.run(main(200_000)) == 100_000
    with pytest.raises(ValueError, match="limit"):
        asyncio.run(main(50_000))
    for wrong in (0, True, "1"):
        with pytest.raises(OptionError, match="a number of bytes is accepted"):
            snapshot.start_async(limit=wrong)  # type: ignore[arg-type]
