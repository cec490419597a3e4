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
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, AnyStr, Protocol, Self, cast

from .._support.unpatched import readable
from .guest_socket import GuestSocket
from .record import Record
from .streams import ParentEnds, TextMode
from .timings import StartTimings

CHUNK = 65536
PIPE_PART = select.PIPE_BUF
"""Bytes that a pipe takes without blocking once it is writable."""


class Child(Protocol):
    """A process whose end and status this process learns."""

    pid: int
    pidfd: int
    """Readable once it has ended."""

    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs. Reaps it."""

    def close(self, *, wait: bool) -> bool:
        """End all that belongs to it and is still there; ``wait`` until it is gone.

        Whether it is gone.
        """


class Process(subprocess.Popen[AnyStr]):
    """A started copy: everything of ``subprocess.Popen`` that its documentation names.

    ``pid`` is its pid here; inside its own pid namespace it has the one that was saved. It is a
    child of this process. With its end, or that of this process, all that it has started ends too.
    """

    def __init__(
        self,
        args: Sequence[str],
        child: Child,
        ends: ParentEnds,
        mode: TextMode,
        number: int,
        *,
        snapshot: Path,
        record: Record,
        unshared_reason: str | None = None,
        guest: GuestSocket | None = None,
        timings: StartTimings,
    ) -> None:
        # Popen's own initialiser would start a program. None of its methods is used.
        self.args = list(args)
        self.pid = child.pid
        self.number = number
        """The number of the start."""
        self.snapshot = snapshot
        """The directory of the snapshot that it is a copy of."""
        self.record = record
        """The record of that snapshot."""
        self.unshared_reason = unshared_reason
        """Why it shares no memory with other copies of the snapshot; None: it does."""
        self.timings = timings
        """Where the time of its start went."""
        self.guest = guest
        """The socket that it is saved by, if it may be; closed with its end."""
        self.returncode: int | None = None
        self.encoding, self.errors = mode.encoding, mode.errors
        self.text_mode = mode.text
        self.pipesize = -1
        self._child = child
        self._input: memoryview | None = None
        self._output: dict[Any, list[bytes]] | None = None
        self.stdin = cast("IO[AnyStr] | None", mode.opened(ends.stdin, "w"))
        self.stdout = cast("IO[AnyStr] | None", mode.opened(ends.stdout, "r"))
        self.stderr = cast("IO[AnyStr] | None", mode.opened(ends.stderr, "r"))

    @property
    def pidfd(self) -> int:
        """A pidfd of it, which it owns until it is reaped; readable once it has ended."""
        return self._child.pidfd

    # ---- its end ----

    def poll(self) -> int | None:
        """The exit status if it has ended, or None."""
        return self._poll(wait=False)

    def _poll(self, *, wait: bool) -> int | None:
        if self.returncode is None:
            status = self._child.status()
            if status is not None:
                self.returncode = status
        if self.returncode is not None:
            if self.guest is not None:
                self.guest.close()
            if self._child.close(wait=wait):
                with contextlib.suppress(ValueError):
                    _unowned.remove(self._child)
            elif self._child not in _unowned:
                _unowned.append(self._child)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return the exit status. ``subprocess.TimeoutExpired`` after
        ``timeout`` seconds.
        """
        if self.returncode is None and not self._has_ended(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        result = self._poll(wait=True)
        assert result is not None
        return result

    def _has_ended(self, timeout: float | None) -> bool:
        return readable(self._child.pidfd, seconds=timeout)

    def send_signal(self, sig: int) -> None:
        """Send a signal to it; nothing happens if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._child.pidfd, sig)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    # ---- its streams ----

    @property
    def universal_newlines(self) -> bool:
        """Whether its streams are text."""
        return self.text_mode

    @universal_newlines.setter
    def universal_newlines(self, value: bool) -> None:
        self.text_mode = bool(value)

    def communicate(
        self, input: AnyStr | None = None, timeout: float | None = None
    ) -> tuple[Any, Any]:
        """Write ``input``, read both outputs to their end, and wait.

        ``subprocess.TimeoutExpired`` after ``timeout`` seconds; a second call goes on where the
        first one stopped, and takes no other input.
        """
        if self._output is not None and input:
            raise ValueError("Cannot send input after starting communication")
        until = None if timeout is None else time.monotonic() + timeout
        if self._output is None:
            self._output = {each: [] for each in (self.stdout, self.stderr) if each is not None}
            self._input = memoryview(self._encoded(input))
            if self.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self.stdin.flush()
        self._exchange(timeout, until)
        self.wait(None if until is None else max(0.0, until - time.monotonic()))
        return self._decoded(self.stdout), self._decoded(self.stderr)

    def _encoded(self, data: AnyStr | None) -> bytes:
        if data is None:
            return b""
        if isinstance(data, str):
            if not self.text_mode:
                raise TypeError("memoryview: a bytes-like object is required, not 'str'")
            stream = cast("io.TextIOWrapper", self.stdin)
            encoding = "utf-8" if self.stdin is None else stream.encoding
            return data.encode(encoding, self.errors or "strict")
        return data

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
                        self.args, timeout, *(self._so_far(each) for each in self._both())
                    )
                for key, _ in selector.select(remaining):
                    if key.fileobj is self.stdin:
                        self._write_part(selector)
                    elif data := os.read(key.fd, CHUNK):
                        self._output[key.fileobj].append(data)
                    else:
                        selector.unregister(key.fileobj)
                        cast("IO[AnyStr]", key.fileobj).close()

    def _both(self) -> tuple[Any, Any]:
        return self.stdout, self.stderr

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

    def _decoded(self, stream: Any) -> Any:
        data = self._so_far(stream)
        if data is None or not self.text_mode:
            return data
        text = data.decode(stream.encoding, stream.errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    # ---- as a context ----

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the streams and wait for its end; it cannot be saved any more."""
        if self.guest is not None:
            self.guest.close()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        try:
            if self.stdin is not None:
                self._close_input()
        finally:
            self.wait()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: returncode: {self.returncode} args: {self.args!r}>"

    def __del__(self, *_: object) -> None:
        """Leave it running, as ``subprocess`` does; it is reaped when another copy is started."""
        child = getattr(self, "_child", None)
        if child is None or self.returncode is not None:
            return
        if self.guest is not None:
            self.guest.close()
        if child.status() is not None and child.close(wait=False):
            return
        _unowned.append(child)
        if child.status() is None:
            import warnings

            warnings.warn(f"copy {self.pid} is still running", ResourceWarning, source=self)


_unowned: list[Child] = []
"""Copies whose :class:`Process` is gone, and those that have ended but for their namespaces."""


def reap_unowned() -> None:
    """Reap those that have ended."""
    for child in list(_unowned):
        if child.status() is not None and child.close(wait=False):
            with contextlib.suppress(ValueError):  # another thread was faster
                _unowned.remove(child)
