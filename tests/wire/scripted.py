"""A CRIU that says yes to everything, on a thread of this process: no privilege, no program.

It keeps what it was sent. What takes a process of its own (to die, to hold the socket, to talk
nonsense) is in ``fake_criu.py``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pycriu_native._ffi import ffi, native
from pycriu_native._line import Line, widen
from pycriu_native._message import REQUEST_TYPES, encode, read
from pycriu_native.errors import Problem
from pycriu_native.values import WireValue

LARGEST = 8 * 2**20


def answer_of(kind: str, **body: WireValue) -> bytes:
    """A ``CriuResp`` that says yes."""
    return encode("response", {"type": REQUEST_TYPES[kind], "success": True, **body})


def decode_request(data: bytes) -> dict[str, Any]:
    """A ``CriuReq`` as a mapping."""
    message = native.pn_unpack(native.PN_REQUEST, len(data), data)
    assert message != ffi.NULL, "what was sent is no request"
    try:
        return read(message)
    finally:
        native.pn_free(message)


@dataclass
class Scripted:
    """A way to reach that CRIU, for a call's ``via``."""

    version: str = "99.0"
    """The release that it says it is."""
    requests: list[bytes] = field(default_factory=list)
    """What it was sent; questions for release and features come first."""
    directories: dict[str, str] = field(default_factory=dict)
    """Which directories the descriptors of the last request were, while it ran."""
    ours: ClassVar[bool] = True

    def identity(self) -> tuple[object, ...] | None:
        """Programs of one release are the same program."""
        return "scripted", self.version

    def name(self) -> str:
        """What to call it in messages."""
        return "the scripted CRIU"

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """Nothing."""
        return iter(())

    def connect(
        self, keep: Sequence[int] = (), *, outside: bool = False, steady: bool = False
    ) -> Line:
        """A line to a thread that answers one request."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        widen(ours)
        threading.Thread(target=self._answer, args=(theirs,)).start()
        return Line(ours, program=self.name())

    def _answer(self, sock: socket.socket) -> None:
        with sock:
            data = sock.recv(LARGEST)
            if not data:
                return
            self.requests.append(data)
            request = decode_request(data)
            self.directories = directories_of(request.get("opts", {}))
            with contextlib.suppress(OSError):
                sock.sendall(self._yes(request["type"]))

    def _yes(self, kind: int) -> bytes:
        name = next(name for name, number in REQUEST_TYPES.items() if number == kind)
        body: dict[str, dict[str, WireValue]] = {}
        match name:
            case "version":
                major, minor = map(int, self.version.split("."))
                body["version"] = {"major_number": major, "minor_number": minor}
            case "feature-check":
                body["features"] = dict.fromkeys(("mem_track", "lazy_pages", "pidfd_store"), True)
            case "dump":
                body["dump"] = {"restored": False}
            case "restore":
                body["restore"] = {"pid": 1234}
            case "page-server" | "page-server-child":
                name = "page-server"  # what CRIU answers to both
                body["ps"] = {"pid": 1234, "port": 27}
        return answer_of(name, **body)


def directories_of(opts: dict[str, Any]) -> dict[str, str]:
    """Where the directories of a request are, while their descriptors are open.

    And what a configuration file of the call's own says.
    """
    found = {}
    for name in ("images_dir_fd", "work_dir_fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{opts.get(name, -1)}")
    if str(opts.get("config_file")).startswith("/proc/"):
        with contextlib.suppress(OSError), open(opts["config_file"], "rb") as file:
            found["config_file"] = os.fsdecode(file.read())
    return found
