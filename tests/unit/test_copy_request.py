"""The line with the arguments of a copy, and its way to the copy."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import pytest

from pycriu_native.errors import CriuError, OptionError
from pycriu_native.snapshots import copy_request
from pycriu_native.snapshots.copy_request import CopyRequest, send_line
from pycriu_native.snapshots.streams import TextMode

LINE = os.urandom(4 * 1024 * 1024)


class Limited(socket.socket):
    """The socket of a process without CAP_NET_ADMIN."""

    def setsockopt(self, *_: Any) -> None:
        """The buffer keeps its size."""
        raise PermissionError


@pytest.fixture(params=[socket.socket, Limited])
def ends(request: pytest.FixtureRequest) -> Any:
    """The ends of a socket with a large buffer, and of one with a limited buffer."""
    ours, theirs = socket.socketpair()
    with request.param(fileno=ours.detach()) as sender, theirs:
        yield sender, theirs


def request_of(size: int) -> CopyRequest:
    """A request with an argument of this size."""
    mode = TextMode(text=False, encoding=None, errors=None, bufsize=-1)
    return CopyRequest(["x" * size], (None, None, None), mode, None, None, None)


def test_a_process_that_reads(ends: Any) -> None:
    """It gets the whole line, and the descriptor once."""
    sender, receiver = ends
    received: list[Any] = []

    def read() -> None:
        data, fds, _, _ = socket.recv_fds(receiver, 65536, 4)
        received.extend(fds)
        while len(data) < len(LINE):
            more, fds, _, _ = socket.recv_fds(receiver, 65536, 4)
            data += more
            received.extend(fds)
        received.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with open(os.devnull) as file:
        send_line(sender, LINE, [file.fileno()])
    reader.join()
    fd, data = received
    os.close(fd)
    assert data == LINE


def test_a_process_that_does_not_read(ends: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer holds the line if its size is not limited; else the error says why."""
    monkeypatch.setattr(copy_request, "PATIENCE", 0.05)
    sender, _ = ends
    if type(sender) is socket.socket:
        send_line(sender, LINE)
        return
    with pytest.raises(CriuError, match="does not read its arguments"):
        send_line(sender, LINE)


def test_the_largest_line() -> None:
    """A line of 16 MiB is accepted."""
    size = copy_request.LARGEST_START - 1000
    assert len(request_of(size).line(1)) > size
    with pytest.raises(OptionError, match="too large: 16777216 bytes are accepted"):
        request_of(copy_request.LARGEST_START).line(1)
