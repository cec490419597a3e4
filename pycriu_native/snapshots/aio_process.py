"""Start and control of copies with asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Generator, Sequence
from signal import SIGKILL, SIGTERM
from typing import IO, Any

from .._support.unpatched import Thread, close
from ..errors import Problem
from .arguments import Text
from .process import SnapshotProcess, end
from .streams import refuse
from .uninterrupted import Work


class AsyncProcess:
    """A started copy, with the interface of ``asyncio.subprocess.Process``.

    ``stdin`` is an ``asyncio.StreamWriter``, ``stdout`` and ``stderr`` are ``StreamReader``, or
    None for a stream that is not a pipe.
    """

    def __init__(self, process: SnapshotProcess[bytes]) -> None:
        self.process = process
        """The copy."""
        self.pid = process.pid
        self.number = process.number
        """The number of the start."""
        self.timings = process.timings
        """The durations of the phases of its start."""
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._readers: list[asyncio.ReadTransport] = []
        self._ended = asyncio.Event()
        # The process closes its own when it is polled, and the loop would not notice the end.
        self._pidfd = os.dup(process.pidfd)
        self._close_pidfd = weakref.finalize(self, close, self._pidfd)

    @classmethod
    async def connected(cls, process: SnapshotProcess[bytes], limit: int) -> AsyncProcess:
        """Attach the streams of a copy to the running event loop."""
        self = cls(process)
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(self._pidfd, self._has_ended)
            if process.stdin is not None:
                protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
                transport, _ = await loop.connect_write_pipe(lambda: protocol, process.stdin)
                self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
            self.stdout = await self._reader(process.stdout, limit)
            self.stderr = await self._reader(process.stderr, limit)
        except BaseException:
            loop.remove_reader(self._pidfd)
            self._close_pidfd()
            self._close_streams()
            raise
        return self

    async def _reader(self, pipe: IO[bytes] | None, limit: int) -> asyncio.StreamReader | None:
        if pipe is None:
            return None
        reader = asyncio.StreamReader(limit=limit)
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: protocol, pipe)
        self._readers.append(transport)
        return reader

    def _has_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._close_pidfd()
        self._ended.set()

    @property
    def returncode(self) -> int | None:
        """The exit status if the copy has ended, negative for a signal."""
        known = self.process.returncode  # poll() would wait for the thread of wait()
        return self.process.poll() if self._ended.is_set() and known is None else known

    async def wait(self) -> int:
        """Wait until the copy ends; return its exit status."""
        await self._ended.wait()
        # The end of all other processes of the copy can take a second. The threads of the loop's
        # executor may be at work.
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def work() -> None:
            try:
                self.process.wait()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(over.set)

        Thread(work, "end of a copy", daemon=True).start()
        await over.wait()
        result = self.process.returncode
        assert result is not None
        return result

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Write ``input``, read both outputs to their end, and wait."""
        _, out, errors = await asyncio.gather(
            self._feed(input), self._read(self.stdout), self._read(self.stderr)
        )
        await self.wait()
        return out, errors

    async def _feed(self, data: bytes | None) -> None:
        if self.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.stdin.write(data or b"")
            await self.stdin.drain()
        self.stdin.close()

    async def _read(self, stream: asyncio.StreamReader | None) -> bytes | None:
        return None if stream is None else await stream.read()

    def send_signal(self, signal: int) -> None:
        """Send a signal to the copy; ignored if it has ended."""
        if not self._ended.is_set():
            self.process.send_signal(signal)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(SIGKILL)

    def _close_streams(self) -> None:
        for transport in self._readers:
            transport.close()
        if self.stdin is not None:
            self.stdin.close()

    async def aclose(self) -> None:
        """Close the streams, and wait until the copy ends."""
        self._close_streams()
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await self.stdin.wait_closed()
        await self.wait()


class Starting:
    """The result of ``Snapshot.start_async``: an awaitable and an asynchronous context manager."""

    def __init__(
        self,
        start: Callable[..., SnapshotProcess[bytes]],
        args: Sequence[Text] | None,
        limit: int,
        options: dict[str, Any],
    ) -> None:
        """Raises ``OptionError`` for the arguments of text mode."""
        if isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0:
            refuse([Problem("limit", limit, "a number of bytes is accepted")], "start")
        for name in ("text", "encoding", "errors", "bufsize"):
            if options.get(name) not in (None, False, -1):
                refuse([Problem(name, options[name], "streams of asyncio are binary")], "start")
        self._start = functools.partial(start, args, **options)
        self._limit = limit
        self._process: AsyncProcess | None = None

    def __await__(self) -> Generator[Any, None, AsyncProcess]:
        return self._started().__await__()

    async def _started(self) -> AsyncProcess:
        """Start the copy on another thread; a cancellation ends it."""
        work = Work("start", self._start, end)
        starting = asyncio.get_running_loop().run_in_executor(None, work.work_here)
        while not starting.done():
            try:
                await asyncio.wait([starting])
            except BaseException as stop:
                if work.prevent():
                    raise
                work.cancel(stop)
                if isinstance(stop, GeneratorExit):  # the loop has ended without this task
                    work.undo_result()
                    raise
        starting.result()  # raises if the executor has dropped the work
        process = work.conclude()
        try:
            return await AsyncProcess.connected(process, self._limit)
        except BaseException:
            end(process)
            raise

    async def __aenter__(self) -> AsyncProcess:
        self._process = await self
        return self._process

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        """Wait until the copy ends; it is killed if the block raised an exception."""
        assert self._process is not None
        if error is not None:
            self._process.kill()
        await self._process.aclose()
