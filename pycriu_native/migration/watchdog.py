"""The parent's side of the watchdog process (``watchdog_process.py``)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from .._support.closing import Closing
from .._support.lazy import socket
from .._support.unpatched import Lock
from .._system.socket_pair import pair
from .._transport.process import ChildProcess
from . import watchdog_process

END_TIMEOUT = 10.0
"""Seconds to wait for the end of the released process."""


class Watchdog(Closing):
    """A watchdog process. Synchronization: methods may be called from any thread."""

    def __init__(self) -> None:
        self._socket, theirs = pair(socket.SOCK_SEQPACKET)
        self._cleanup: dict[str, Any] = {}
        self._lock = Lock()
        with theirs:
            program = sys.executable or shutil.which("python3") or "/usr/bin/python3"
            words = [program, "-I", "-S", watchdog_process.__file__, str(theirs.fileno())]
            try:
                self._process = ChildProcess.start(words, os.environ, keep=[theirs.fileno()])
            except BaseException:
                self._socket.close()
                raise

    def set_cleanup(self, fds: Sequence[int] = (), **cleanup: Any) -> None:
        """Set the actions for the death of this process; the watchdog keeps copies of ``fds``.

        With ``abort_serving`` or ``hold``, ``fds`` are connections to the CRIU of a dump.
        """
        with self._lock:
            self._cleanup |= cleanup
            to_criu = bool(fds) and not {"abort_serving", "hold"}.isdisjoint(cleanup)
            message = json.dumps(self._cleanup | {"to_criu": to_criu})
            with contextlib.suppress(ConnectionError):  # the watchdog was killed
                socket.send_fds(self._socket, [message.encode()], list(fds))

    def close(self) -> None:
        """End the watchdog without any action. A second call does nothing."""
        with self._lock:
            if self._socket.fileno() < 0:
                return
            with contextlib.suppress(OSError):
                self._socket.sendall(b'{"release": true}', socket.MSG_NOSIGNAL)
            self._socket.close()
        self._process.wait(END_TIMEOUT)


def identity_of(pid: int) -> list[list[Any]]:
    """Pid and start time of a process, for ``set_cleanup``."""
    return [[pid, watchdog_process.start_of(pid)]]
