"""A started copy, with the interface of ``subprocess.Popen``."""

from __future__ import annotations

import contextlib
import io
import os
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, AnyStr, Self, cast

from .._support.forked_child import forgets
from .._support.unpatched import RLock, readable
from .child import Child
from .copy_request import CopyRequest
from .guest_socket import GuestSocket
from .record import Record
from .streams import rest_of
from .timings import StartTimings

CHUNK = 65536
PIPE_PART = select.PIPE_BUF
"""Bytes that can be written to a pipe without blocking when it is writable."""


class SnapshotProcess(subprocess.Popen[AnyStr]):
    """A started copy, with the documented interface of ``subprocess.Popen``.

    ``pid`` is its pid in the namespace of this process; in its own pid namespace it has the saved
    pid. It is a child of this process. When it or this process ends, its descendants end too.

    It leads its own session, so Ctrl-C in a terminal sends no SIGINT to it: a ``with`` block that
    is left by ``KeyboardInterrupt`` kills it, and so does one that is interrupted while it waits
    for the end of the copy.

    Synchronization: any number of threads may wait for it and send signals to it.
    """

    def __init__(
        self,
        given: CopyRequest,
        child: Child,
        ends: Mapping[str, int],
        timings: StartTimings,
        record: Record,
        snapshot: Path,
        *,
        unshared_reason: str | None = None,
        guest: GuestSocket | None = None,
    ) -> None:
        # Popen.__init__ would start a program. All methods of Popen are replaced.
        mode = given.mode
        self.args = given.command(record)
        self.pid = child.pid
        self.number = timings.number
        """The number of the start."""
        self.snapshot = snapshot
        """The directory of its snapshot."""
        self.record = record
        """The record of the snapshot."""
        self.unshared_reason = unshared_reason
        """Why it does not share memory with other copies of the snapshot; None if it does."""
        self.timings = timings
        """The durations of the parts of its start."""
        self.guest = guest
        """The socket for saving it, if it is savable; closed at its end."""
        self.returncode: int | None = None
        self.encoding, self.errors = mode.encoding, mode.errors
        self.text_mode = mode.text
        self.pipesize = -1
        self._child = child
        self._lock = RLock()
        self._waiting = 0
        """Threads that wait for its pidfd, which stays open meanwhile."""
        self._closing = False
        self._input: memoryview | None = None
        self._output: dict[Any, list[bytes]] | None = None
        self._results: dict[Any, Any] = {}
        """The whole outputs of the streams that :meth:`communicate` has read."""
        self.stdin = cast("IO[AnyStr] | None", mode.opened(ends.get("stdin"), "w"))
        self.stdout = cast("IO[AnyStr] | None", mode.opened(ends.get("stdout"), "r"))
        self.stderr = cast("IO[AnyStr] | None", mode.opened(ends.get("stderr"), "r"))
        forgets(self)

    def forget(self) -> None:
        """In a forked child: the copy is the parent's; its status is 0, as in subprocess."""
        self._lock = RLock()
        self._closing = True
        if self.returncode is None:
            self.returncode = 0

    @property
    def pidfd(self) -> int:
        """The pidfd, which is readable after the copy has ended; closed when it is reaped."""
        return self._child.pidfd

    # ---- end ----

    def poll(self) -> int | None:
        """The exit status if the copy has ended, or None."""
        return self._poll(wait=False)

    def _poll(self, *, wait: bool) -> int | None:
        with self._lock:
            if self.returncode is None:
                self.returncode = self._child.status()
            # A signal's handler may call this within the same.
            if self.returncode is not None and not (self._waiting or self._closing):
                self._closing = True
                try:
                    self._close(wait=wait)
                finally:
                    self._closing = False
            return self.returncode

    def _close(self, *, wait: bool) -> None:
        if self.guest is not None:
            self.guest.close()
        if self._child.close(wait=wait):
            _unowned.discard(self._child)
        else:
            _unowned.add(self._child)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the copy ends; return its exit status.

        Raises ``subprocess.TimeoutExpired`` after ``timeout`` seconds.
        """
        if not self._has_ended(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        result = self._poll(wait=True)
        assert result is not None
        return result

    def _has_ended(self, timeout: float | None) -> bool:
        with self._lock:
            if self.returncode is not None:
                return True
            self._waiting += 1
        try:
            return readable(self._child.pidfd, seconds=timeout)
        finally:
            with self._lock:
                self._waiting -= 1

    def send_signal(self, sig: int) -> None:
        """Send a signal to the copy; ignored if it has ended."""
        with self._lock:
            if self.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._child.pidfd, sig)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    # ---- streams ----

    @property
    def universal_newlines(self) -> bool:
        """Whether the streams are in text mode."""
        return self.text_mode

    @universal_newlines.setter
    def universal_newlines(self, value: bool) -> None:
        self.text_mode = bool(value)

    def communicate(
        self, input: AnyStr | None = None, timeout: float | None = None
    ) -> tuple[Any, Any]:
        """Write ``input``, read both outputs to their end, and wait.

        ``subprocess.TimeoutExpired`` after ``timeout`` seconds; a second call continues where
        the first one stopped, and accepts no other input.
        """
        if self._output is not None and input:
            raise ValueError("Cannot send input after starting communication")
        until = None if timeout is None else time.monotonic() + timeout
        if self._output is None:
            self._input = memoryview(self._encoded(input))  # may refuse it
            self._output = {each: [] for each in (self.stdout, self.stderr) if each is not None}
            if self.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self.stdin.flush()
        self._exchange(timeout, until)
        self.wait(None if until is None else max(0.0, until - time.monotonic()))
        return self._whole(self.stdout), self._whole(self.stderr)

    def _encoded(self, data: Any) -> Any:
        if data is None or self.stdin is None:
            return b""
        if self.text_mode:
            encoding = cast("io.TextIOWrapper", self.stdin).encoding
            return data.encode(encoding, self.errors or "strict")
        return data  # memoryview() refuses a str as subprocess does

    def _exchange(self, timeout: float | None, until: float | None) -> None:
        assert self._output is not None
        assert self._input is not None
        with selectors.DefaultSelector() as selector:
            if self.stdin is not None and not self.stdin.closed:
                if self._input:
                    selector.register(self.stdin, selectors.EVENT_WRITE)
                else:
                    self._close_input()
            for stream in self._output:
                if not stream.closed:
                    selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                remaining = None if until is None else until - time.monotonic()
                if remaining is not None and remaining <= 0:
                    assert timeout is not None
                    raise subprocess.TimeoutExpired(
                        self.args,
                        timeout,
                        *(self._so_far(each) or None for each in (self.stdout, self.stderr)),
                    )
                for key, _ in selector.select(remaining):
                    if key.fileobj is self.stdin:
                        self._write_part(selector)
                    elif data := os.read(key.fd, CHUNK):
                        self._output[key.fileobj].append(data)
                    else:
                        selector.unregister(key.fileobj)

    def _so_far(self, stream: object) -> bytes | None:
        return None if stream is None or self._output is None else b"".join(self._output[stream])

    def _write_part(self, selector: selectors.BaseSelector) -> None:
        assert self.stdin is not None
        assert self._input is not None
        try:
            written = os.write(self.stdin.fileno(), self._input[:PIPE_PART])
            self._input = self._input[written:]
        except BrokenPipeError:
            self._input = self._input[:0]
        if not self._input:
            selector.unregister(self.stdin)
            self._close_input()

    def _close_input(self) -> None:
        assert self.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()

    def _whole(self, stream: Any) -> Any:
        if stream is not None and stream not in self._results:
            if stream.closed:
                self._results[stream] = "" if self.text_mode else b""
            else:
                self._results[stream] = rest_of(stream, self._so_far(stream) or b"")
                stream.close()
        return self._results.get(stream)

    # ---- as a context ----

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, value: object, traceback: object
    ) -> None:
        """Close the streams, and wait until the copy ends; it can no longer be saved.

        After ``KeyboardInterrupt``, in the block or here, the copy is killed.
        """
        try:
            if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
                self.kill()
            self._finish()
        except KeyboardInterrupt:
            self.kill()
            self.wait()
            raise

    def _finish(self) -> None:
        if self.guest is not None:
            self.guest.close()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        try:
            if self.stdin is not None:
                self.stdin.close()
        except Exception:
            self.wait()
            raise
        self.wait()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: returncode: {self.returncode} args: {self.args!r}>"

    def __del__(self, *_: object) -> None:
        """The copy continues, as with ``subprocess``; it is reaped when another one is started."""
        child = getattr(self, "_child", None)
        if child is None or self.returncode is not None:
            return
        if self.guest is not None:
            self.guest.close()
        if child.status() is not None and child.close(wait=False):
            return
        _unowned.add(child)
        if child.status() is None:
            import warnings

            warnings.warn(f"copy {self.pid} is still running", ResourceWarning, source=self)


def end(process: SnapshotProcess[Any]) -> None:
    """Kill a copy whose start was cancelled, reap it, and close its streams."""
    with process:
        process.kill()


_unowned: set[Child] = set()
"""Copies whose :class:`SnapshotProcess` was deleted, or whose namespaces have not ended yet."""


def reap_unowned() -> None:
    """Reap the copies in ``_unowned`` that have ended."""
    for child in list(_unowned):
        if child.status() is not None and child.close(wait=False):
            _unowned.discard(child)
