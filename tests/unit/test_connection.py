"""Each way to end a connection leaves its socket and its process in the documented state."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    OptionError,
    ProgramNotFoundError,
    RestoreResult,
    Service,
    Socket,
    dump,
    version,
)
from pycriu_native._transport import base
from pycriu_native._transport.connection import Connection
from pycriu_native._transport.process import ChildProcess
from pycriu_native._transport.worker import WorkerConnection

UNTIL_SOCKET_CLOSES = "import sys; print('ready', flush=True); sys.stdin.read(); sys.exit(3)"
"""A program in the place of CRIU: it ends when its standard input, a socket, is closed."""

ENDS = ["wait", "close_async", "detach"]


@pytest.fixture
def connection() -> Iterator[WorkerConnection]:
    """A connection to a process that has written ``ready``."""
    ours, theirs = socket.socketpair()
    stderr = os.memfd_create("stderr")
    child = subprocess.Popen(
        [sys.executable, "-c", UNTIL_SOCKET_CLOSES],
        stdin=theirs.fileno(),
        stdout=stderr,
        start_new_session=True,
    )
    theirs.close()
    while not os.fstat(stderr).st_size:
        assert child.poll() is None
    process = ChildProcess(child.pid, os.pidfd_open(child.pid), stderr)
    result = WorkerConnection(ours.detach(), process, "a program")
    yield result
    result.wait()
    process.wait(1)
    child.wait()


def exists(pid: int) -> bool:
    """Whether a process or a zombie has the pid."""
    return os.path.exists(f"/proc/{pid}")


def test_close_keeps_the_process(connection: WorkerConnection) -> None:
    """``close`` closes the socket only: the process ends, and ``wait`` still reaps it."""
    connection.close()
    assert connection.fd == -1
    assert connection.status is None
    assert connection.has_ended(10)
    assert exists(connection.pid)
    connection.wait()
    assert connection.status == 3
    assert not exists(connection.pid)


def test_wait_reaps(connection: WorkerConnection) -> None:
    """``wait`` sets the status and the output, and leaves no process."""
    connection.wait()
    assert (connection.status, connection.final_stderr) == (3, "ready\n")
    assert not exists(connection.pid)
    assert connection.pidfd == -1


def test_wait_after_kill(connection: WorkerConnection) -> None:
    """A killed process has its signal as status."""
    connection.kill()
    connection.wait()
    assert connection.status == -9


def test_close_async_leaves_the_reaping(connection: WorkerConnection) -> None:
    """``close_async`` returns before the process is reaped, and passes it to ``retire``."""
    retired: list[ChildProcess] = []
    connection.retire = retired.append
    connection.close_async()
    assert (connection.status, connection.final_stderr) == (None, "ready\n")
    [process] = retired
    assert not process.closed
    assert exists(connection.pid)
    process.wait(10)
    assert process.status == 3
    assert not exists(connection.pid)


def test_close_async_without_a_pool_waits(connection: WorkerConnection) -> None:
    """Without a pool, the process is reaped at once."""
    connection.close_async()
    assert connection.status == 3


def test_detach_leaves_the_process(connection: WorkerConnection) -> None:
    """``detach`` does not reap the process, and a later ``kill`` does not end it."""
    copy = connection.sock().dup()  # keeps the process running
    connection.detach()
    assert (connection.status, connection.final_stderr) == (None, "ready\n")
    connection.kill()
    pid, _ = os.waitpid(connection.pid, os.WNOHANG)
    assert pid == 0
    copy.close()


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ["close", *ENDS])
def test_the_first_decides(connection: WorkerConnection, first: str, second: str) -> None:
    """A second end of a connection changes nothing, and does not pass the process on again."""
    retired: list[ChildProcess] = []
    connection.retire = retired.append
    getattr(connection, first)()
    before = connection.status, connection.final_stderr, list(retired)
    getattr(connection, second)()
    assert (connection.status, connection.final_stderr, retired) == before
    assert len(retired) == 1


@pytest.mark.parametrize("end", ["close", *ENDS])
def test_without_a_process_each_closes(end: str) -> None:
    """A connection to a service owns its socket only."""
    ours, theirs = socket.socketpair()
    with theirs:
        connection = Connection(ours.detach(), program="a service")
        getattr(connection, end)()
        getattr(connection, end)()
        assert connection.fd == -1
        assert theirs.recv(1) == b""


def test_a_descriptor_that_is_no_socket() -> None:
    """Its duplicate is closed."""
    with open(os.devnull) as file:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(CriuError, match="is no socket"):
            version(via=Socket(file))
        assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("fd", [-1, 4000, None], ids=["none", "closed", "object"])
def test_a_descriptor_that_is_not_open(fd: Any, tmp_path: Path) -> None:
    """It is refused before anything is changed."""
    if fd is None:
        with socket.socket() as fd:
            pass  # closed
    with pytest.raises(OptionError, match="not open"):
        dump(2**22 + 1, CriuOpts(images_directory=tmp_path), via=Socket(fd))
    assert not list(tmp_path.iterdir())


def test_a_service_whose_path_is_too_long(tmp_path: Path) -> None:
    """The error has the reason, for which the kernel has no number."""
    with pytest.raises(ProgramNotFoundError, match="path too long"):
        version(via=Service(tmp_path / ("x" * 110)))


def test_a_service_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If its queue of connections is full, the wait to connect has a limit."""
    monkeypatch.setattr(base, "UNTIL_ACCEPTED", 1)
    kind = socket.AF_UNIX, socket.SOCK_SEQPACKET
    path = tmp_path / "service"
    with socket.socket(*kind) as listener, socket.socket(*kind) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        with pytest.raises(ProgramNotFoundError, match="no criu service answers"):
            version(via=Service(path))


@pytest.mark.parametrize("timeout", [1e10, float("inf")])
def test_a_wait_of_years(timeout: float) -> None:
    """Timeouts that poll(2) does not support are no limit."""
    child = subprocess.Popen(["sleep", "0.1"])
    result = RestoreResult(pid=child.pid, images="", duration=0, log=None, statistics=None)
    assert result.wait(timeout) == 0
    child.returncode = 0
