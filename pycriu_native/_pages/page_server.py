"""The page server, which receives the memory pages of dumps on other hosts, or serves them.

With ``lazy_pages`` it sends the pages of a complete image set to one ``LazyPages``. Without TLS,
all users who can connect to the address can write or read images. It is therefore served on
loopback or with ``tls``, unless ``PageServer(..., clear_text=True)`` allows more. The server
listens when the call returns; there is no other notification of that.
"""

from __future__ import annotations

import contextlib
import os

from .._calls.call import Call
from .._calls.progress_state import OnProgress
from .._calls.request import Outcome
from .._calls.verbs import checked_request
from .._support.closing import Closing
from .._support.lazy import signal, socket
from .._support.light_typing import cast
from .._support.unpatched import readable
from .._transport.base import Via
from .._transport.connection import Connection
from .._wire.messages import REQUEST_TYPES, decode_response, encode
from ..enums import Verb
from ..errors import CriuError, ProtocolError, WorkerDiedError
from ..options.criu_opts import CriuOpts
from ..options.values import WireValue
from ..results import PageServerResult

LARGEST_ANSWER = 64 * 1024
UNTIL_FOUND = 2.0
"""Seconds in which a detached server is found by its port."""


def page_server(
    opts: CriuOpts, *, via: Via | None = None, deadline: float | None = None
) -> PageServerResult:
    """Start a page server that runs in the background until it has served one dump.

    ``opts.page_server`` is the address; with port 0 CRIU chooses a free one, which is in the
    result. Pages are written to the images directory; with ``lazy_pages`` they are read from it.
    Raises ``ImagesError``, and the errors of any verb. Needs CRIU 3.17; TLS needs ``tls_cert``,
    ``tls_key`` and ``tls_cacert``.
    """
    return _result_of(_start(Verb.PAGE_SERVER, opts, via, deadline))


def page_server_child(
    opts: CriuOpts, *, via: Via | None = None, deadline: float | None = None
) -> PageServerChild:
    """Start a page server whose end can be waited for; otherwise as :func:`page_server`.

    The result is owned: use it in a ``with`` statement, or close it.
    """
    return PageServerChild(_start(Verb.PAGE_SERVER_CHILD, opts, via, deadline))


def _start(verb: Verb, opts: CriuOpts, via: Via | None, deadline: float | None) -> Outcome:
    keep = verb is Verb.PAGE_SERVER_CHILD
    request = checked_request(verb, opts, via, deadline=deadline, keep_connection=keep)
    outcome = Call(request).wait()
    if outcome.interrupted_by is not None:
        # Too late for CRIU to undo it: the started server is ended.
        if pid := _result_of(outcome).pid:  # 0: it was not found, and kill(2) means a group by that
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        outcome.connection.wait()
        raise outcome.interrupted_by
    return outcome


def _result_of(outcome: Outcome) -> PageServerResult:
    from .._system.inet_sockets import listener_on  # not loaded by a star import

    answer = cast(dict[str, WireValue], outcome.answer["ps"])
    port = cast(int, answer["port"]) & 0xFFFF
    return PageServerResult(
        # CRIU sends pid 0 for a server that has detached itself (seen up to 4.3).
        pid=cast(int, answer["pid"]) or listener_on(port, UNTIL_FOUND) or 0,
        port=port,
        images=outcome.images,
        log=outcome.log,
        duration=outcome.duration,
    )


class PageServerChild(Closing):
    """A running page server. Synchronization: not to be shared between threads."""

    def __init__(self, outcome: Outcome) -> None:
        self.result = _result_of(outcome)
        """Where it listens, and its pid."""
        self._connection: Connection | None = outcome.connection
        self._requested = False
        self._status: int | None = None

    def wait(self, timeout: float | None = None, *, on_progress: OnProgress | None = None) -> int:
        """Wait until it has served its dump; returns its exit code (negative: a signal).

        ``timeout`` is in seconds; after a ``TimeoutError`` it can be called again. ``on_progress``
        is called with a :class:`Progress` during the wait, on a separate thread; the total is not
        known. May be called again after the end.
        """
        if on_progress is None or self._status is not None:
            return self._wait(timeout)
        from .._calls.progress import reporting, size_of_pages  # few are watched

        def measure() -> tuple[str, int, int | None]:
            return str(Verb.PAGE_SERVER), size_of_pages(self.result.images, parents=False), None

        with reporting(on_progress, measure) as operation:
            status = self._wait(timeout)
            operation.ends_well = status == 0
        return status

    def _wait(self, timeout: float | None) -> int:
        if self._status is None:
            connection = self._connection
            if connection is None:
                raise ValueError("the page server is closed")
            if not self._requested:
                self._requested = True
                request: dict[str, WireValue] = {
                    "type": REQUEST_TYPES["wait-pid"],
                    "pid": self.result.pid,
                }
                with contextlib.suppress(BrokenPipeError):  # ``_read`` raises
                    connection.sock().sendall(encode("request", request), socket.MSG_NOSIGNAL)
            if not readable(connection.fd, seconds=timeout):
                raise TimeoutError(f"the page server, pid {self.result.pid}, serves on")
            self._status = self._read(connection)
            connection.wait()
        return self._status

    def _read(self, connection: Connection) -> int:
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = connection.sock().recv(LARGEST_ANSWER)
        if not data:
            raise WorkerDiedError(f"{connection.program} ended before the page server")
        answer = decode_response(data)
        if answer is None or answer["type"] != REQUEST_TYPES["wait-pid"]:
            raise ProtocolError(f"{connection.program} sent another response")
        if not answer["success"]:
            raise CriuError(f"CRIU could not wait for the page server, pid {self.result.pid}")
        return os.waitstatus_to_exitcode(cast(int, answer.get("status", 0)))

    def close(self) -> None:
        """End it if it still serves, and release all resources. May be called again."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        # After the response to a wait that timed out, its pid can be that of another process.
        if self._status is None and not (self._requested and readable(connection.fd, seconds=0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.result.pid, signal.SIGKILL)
        connection.wait()
