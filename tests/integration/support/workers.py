"""CRIU workers: those of calls, which a test can kill or stop, and those that a test starts."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path

from pycriu_native._transport.program import find_program

from .processes import children


def workers() -> list[int]:
    """The children that are CRIU workers."""
    result = []
    for pid in children():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # Its title is "criu swrk" at first and then, for example, "criu: dump --rpc".
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"\0swrk\0" in words or b" --rpc" in words:
                result.append(pid)
    return result


def the_worker() -> int:
    """The only worker."""
    [worker] = workers()
    return worker


def start_worker(stdout: int | None = None) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A worker of the test, and the socket to send it requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [find_program(), "swrk", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
        )
    return ours, process
