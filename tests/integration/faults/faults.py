"""Faults during a call of CRIU, and checks of the process after them.

The process has state that can be lost: memory, an open file with a position, a TCP connection,
threads. ``CheckedProcess.losses`` lists the lost state.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pycriu_native import CriuError, CriuOpts, restore
from pycriu_native._integrity.dump_marker import holds_dump

from ..conftest import Spawn
from ..support.processes import Target, eventually, is_alive, reap_all, state
from ..support.workers import the_worker, workers

SCENARIO = """
    import hashlib, os, socket, threading, time
    memory = bytearray(os.urandom(1 << 20) * 4)
    file = open(HERE / "file", "w+")
    file.write("0123456789")
    file.seek(4)
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    for end in (client, accepted):
        end.settimeout(10)

    def echo(text):
        received = []
        for one, other in ((client, accepted), (accepted, client)):
            one.sendall(text.encode())
            received.append(other.recv(100).decode())
        return received

    for _ in range(2):
        threading.Thread(target=time.sleep, args=[1e6], daemon=True).start()
    serve(
        memory=lambda: hashlib.sha256(memory).hexdigest(),
        position=lambda: [file.tell(), os.fstat(file.fileno()).st_ino],
        threads=threading.active_count,
        echo=echo,
    )
"""


@dataclass
class CheckedProcess:
    """The process and its original state."""

    target: Target
    memory: str
    position: list[int]

    @classmethod
    def start(cls, spawn: Spawn) -> CheckedProcess:
        """Start a process."""
        target = spawn(SCENARIO)
        return cls(target, target.ask("memory"), target.ask("position"))

    @property
    def pid(self) -> int:
        return self.target.pid

    def losses(self) -> list[str]:
        """The lost state; the process must run."""
        lost = []
        if self.target.ask("memory") != self.memory:
            lost.append("memory")
        if self.target.ask("position") != self.position:
            lost.append("its file")
        if self.target.ask("threads") != 3:
            lost.append("threads")
        if self.target.ask("echo", "still here?") != ["still here?"] * 2:
            lost.append("its connection")
        return lost

    def is_intact(self) -> bool:
        """Whether it runs untraced and has lost nothing."""
        traced = "TracerPid:\t0\n" not in Path(f"/proc/{self.pid}/status").read_text()
        return state(self.pid) in ("R", "S", "D") and not traced and self.losses() == []

    def survives(self) -> bool:
        """Whether it still responds; else it has ended."""
        response = self.target.put("ticks")
        eventually(lambda: response.exists() or not is_alive(self.pid), "its response, or its end")
        return response.exists() and is_alive(self.pid)

    def dumps_and_restores(self, opts: CriuOpts) -> None:
        """Check that it can be dumped and restored."""
        from pycriu_native import dump

        dump(self.pid, opts)
        self.target.end()
        reap_all()
        restore(opts.only_for("restore"))
        assert self.losses() == []

    def restores(self, opts: CriuOpts) -> None:
        """Check that its images restore without loss."""
        self.target.end()
        reap_all()
        assert not is_alive(self.pid)
        restore(opts.only_for("restore"))
        assert self.losses() == []


# ---- faults ----


def _signal(number: int) -> Callable[[], None]:
    return lambda: os.kill(the_worker(), number)


def shut_down_the_socket() -> None:
    """End the connection to CRIU, for both sides."""
    for name in os.listdir("/proc/self/fd"):
        if not os.path.islink(link := f"/proc/self/fd/{name}"):
            continue  # the descriptor that lists this directory
        if not os.readlink(link).startswith("socket:"):
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            if sock.type == socket.SOCK_SEQPACKET and sock.family == socket.AF_UNIX:
                sock.shutdown(socket.SHUT_RDWR)


FAULTS: dict[str, Callable[[], None]] = {
    "CRIU gets SIGKILL": _signal(signal.SIGKILL),
    "CRIU gets SIGTERM": _signal(signal.SIGTERM),
    "CRIU gets SIGSTOP": _signal(signal.SIGSTOP),
    "its socket is shut down": shut_down_the_socket,
}
"""The faults, applied while CRIU waits for the response to a notification."""

DEADLINE = 1.0
"""Deadline in seconds of a call whose CRIU is stopped."""


CODE = "CRIU's code in the memory of pid"
"""An error's text for memory that a killed CRIU left mapped in a process; its size follows."""


def code_in(pid: int) -> bool:
    """Whether memory of CRIU is mapped in a process."""
    return "memfd:CRIUMFD" in Path(f"/proc/{pid}/maps").read_text()


def raised(error: BaseException | None) -> str:
    """The text of the table for an error or a result."""
    if error is None:
        return "the result"
    if hasattr(error, "result"):
        return f"`{type(error).__name__}` with the result"
    return f"`{type(error).__name__}`"


def images_are(directory: Path) -> str:
    """Whether they are accepted as a complete set."""
    if not list(directory.glob("*.img")):
        return "none"
    return "complete" if holds_dump(str(directory)) else "incomplete, and refused"


def left(error: BaseException | None) -> str:
    """The leftovers that an error lists, and those that it does not list."""
    things = list(error.left_behind) if isinstance(error, CriuError) else []
    things = ["CRIU's code in its memory" if CODE in thing else thing for thing in things]
    if workers():
        things.append("a CRIU")
    return "; ".join(things) or "nothing"
