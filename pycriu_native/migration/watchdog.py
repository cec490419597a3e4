"""Our end of the guard process (``watchdog_process.py``): told what to undo, released in the
end.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from .._support.closing import Closing
from .._support.unpatched import Lock
from .._transport.connection import socket_pair
from . import watchdog_process

UNTIL_ENDED = 10.0
"""Seconds that the guard gets to end after its release."""


class Watchdog(Closing):
    """A guard of our own. Synchronization: may be told things from any thread."""

    def __init__(self) -> None:
        self._line, theirs = socket_pair()
        self._duty: dict[str, Any] = {}
        self._lock = Lock()
        with theirs:
            words = [sys.executable or "python3", "-I", "-S", watchdog_process.__file__]
            try:
                self._process: subprocess.Popen[bytes] = subprocess.Popen(
                    [*words, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                )
            except BaseException:
                self._line.close()
                raise

    def set_cleanup(self, fds: Sequence[int] = (), **duty: Any) -> None:
        """Change what is to be undone; ``fds`` the guard keeps copies of."""
        with self._lock:
            self._duty |= duty
            message = json.dumps(
                self._duty | ({"spoiler": True} if "abort_serving" in duty else {})
            )
            with contextlib.suppress(BrokenPipeError):
                socket.send_fds(self._line, [message.encode()], list(fds))

    def close(self) -> None:
        """There is nothing more to undo. Twice does nothing."""
        with self._lock:
            if self._line.fileno() < 0:
                return
            with contextlib.suppress(OSError):
                self._line.sendall(b'{"release": true}', socket.MSG_NOSIGNAL)
            self._line.close()
        try:
            self._process.wait(UNTIL_ENDED)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def guarded(pid: int) -> list[list[Any]]:
    """How the guard is told of a process: by pid and start."""
    return [[pid, watchdog_process.start_of(pid)]]
