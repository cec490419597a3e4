"""Fork servers: their workers, and their end after each kind of failure."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuOpts,
    ProgramError,
    Worker,
    WorkerPool,
    dump_many,
    run_many,
    version,
)
from pycriu_native._recovery.temporary_files import remove_temporary
from pycriu_native._system import elf
from pycriu_native._transport import forkserver as module
from pycriu_native._transport.connection import Connection
from pycriu_native._transport.forkserver import ForkServer, ForkServerUnavailableError
from pycriu_native._transport.program import find_program
from pycriu_native._transport.spawn import SAVING, SpawnOptions
from pycriu_native._transport.worker import WorkerConnection, connect_worker
from pycriu_native._transport.worker_factory import ForkServerCache

from .conftest import Spawn
from .support.hosts import host
from .support.processes import children, eventually, is_alive


@pytest.fixture
def server() -> Iterator[ForkServer]:
    """A fork server that is ready."""
    made = ForkServer(find_program(), {}, SAVING)
    yield made
    made.close()


def fork_worker(server: ForkServer) -> WorkerConnection:
    """Return a new worker of the fork server."""
    return connect_worker(find_program(), server.fork_worker)


def test_files_of_a_killed_worker_are_removed(server: ForkServer) -> None:
    """The fork server is no other CRIU that may use them."""
    path = Path("/tmp/.criu.move_mount_set_group.Ab12cd")
    path.mkdir()
    try:
        assert server.is_open
        assert list(remove_temporary(time.time() - 1, (), killed=True)) == []
        assert not path.exists()
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()


def test_a_copy_of_its_socket_in_another_process(server: ForkServer) -> None:
    """A forked process can hold a copy of the socket: the server still ends by itself."""
    copy = os.dup(server._connection.fd)
    server.close()
    os.close(copy)
    assert server._connection.status == 0
    with pytest.raises(ForkServerUnavailableError):
        fork_worker(server)


def test_a_forked_child_does_not_keep_the_server(server: ForkServer) -> None:
    """A forked child closes its copy of the socket, and the parent can use the server."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writing)
            os.read(reading, 1)
        finally:
            os._exit(0)
    ours = os.readlink(f"/proc/self/fd/{server._connection.fd}")
    eventually(lambda: ours not in _open_files(pid), "the closing of the child's copy")
    os.close(writing)
    os.close(reading)
    os.waitpid(pid, 0)
    fork_worker(server).wait()


def _open_files(pid: int) -> list[str]:
    result = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            result.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return result


def test_a_server_that_does_not_respond(
    server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is ended, and so is the worker that it would have forked later."""
    monkeypatch.setattr(module, "UNTIL_FORKED", 200)
    before = children()
    os.kill(server.pid, signal.SIGSTOP)
    with pytest.raises(ForkServerUnavailableError):
        fork_worker(server)
    assert children() <= before - {server.pid}


def test_a_worker_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is forked after the time limit is ended, at any instant of its fork."""
    monkeypatch.setattr(module, "UNTIL_FORKED", 0)
    end = ForkServer._end
    before = children()
    for step in range(30):

        def end_later(self: ForkServer, delay: float = step / 5000) -> None:
            time.sleep(delay)
            end(self)

        monkeypatch.setattr(ForkServer, "_end", end_later)
        server = ForkServer(find_program(), {}, SAVING)
        with contextlib.suppress(ForkServerUnavailableError):
            fork_worker(server).wait()  # its pid can come before the first look
        server.close()
        assert children() <= before


def test_a_fork_server_that_is_killed_after_the_fork(server: ForkServer) -> None:
    """The worker of a fork server that was killed sends its pid itself: the request succeeds."""
    before = children()
    killed = threading.Thread(target=os.kill, args=(server.pid, signal.SIGKILL))

    def kill_meanwhile(ends: Any) -> tuple[int, int]:
        killed.start()
        return server.fork_worker(ends)

    with contextlib.suppress(ForkServerUnavailableError):
        connect_worker(find_program(), kill_meanwhile).wait()
    killed.join()
    server.close()
    assert children() <= before - {server.pid}


def test_a_stopped_server_ends(server: ForkServer) -> None:
    """A stopped server is continued, so that it ends by itself."""
    os.kill(server.pid, signal.SIGSTOP)
    server.close()
    assert server._connection.status == 0


class _CustomWorker(Worker):
    """A subclass with its own way to start a worker."""

    def connect(self, keep: Sequence[int] = (), spawn_options: SpawnOptions = SAVING) -> Connection:
        raise NotImplementedError


def test_other_kinds_of_workers_are_not_replaced() -> None:
    """A batch replaces neither subclasses, nor pools, nor workers with their own stdin."""
    with ForkServerCache() as cache:
        with pytest.raises(NotImplementedError):
            cache.connect(_CustomWorker(), (), SAVING)
        with open(os.devnull) as null:
            cache.connect(Worker(stdin=null), (), SAVING).wait()
        assert not cache._servers
        cache.connect(Worker(), (), SAVING).wait()
        assert len(cache._servers) == 1
        with WorkerPool(1) as warm:
            warm.close()
            with pytest.raises(ValueError, match="closed"):
                cache.connect(warm, (), SAVING)


def test_a_worker_inherits_descriptors(server: ForkServer) -> None:
    """Inherited descriptors have the caller's numbers, also if the fork server uses these."""
    own = {int(number) for number in os.listdir(f"/proc/{server.pid}/fd")}
    numbers = sorted((own | set(range(3, 60))) - {0, 1, 2})
    is_open = {int(each) for each in os.listdir("/proc/self/fd")}
    with open("/dev/zero") as zero, contextlib.ExitStack() as stack:
        for number in set(numbers) - is_open - {zero.fileno()}:
            stack.callback(os.close, os.dup2(zero.fileno(), number))
        expected = [os.readlink(f"/proc/self/fd/{number}") for number in numbers]
        worker = connect_worker(find_program(), lambda ends: server.fork_worker(ends, numbers))

        def inherited() -> list[str]:
            here = f"/proc/{worker.pid}/fd"
            held = set(os.listdir(here))
            return [os.readlink(f"{here}/{each}") for each in numbers if str(each) in held]

        eventually(lambda: inherited() == expected, "its descriptors")
        # CRIU waited for a request on its own socket, which has been closed.
        worker.wait()
        assert "Can't recv request: Connection reset by peer" in worker.final_stderr
    assert {int(number) for number in os.listdir(f"/proc/{server.pid}/fd")} == own


def test_a_worker_that_cannot_be_watched(
    server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a pidfd the worker is ended and reaped, since the call could not detect its end."""

    def fail(pid: int, flags: int = 0) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = children()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", fail)
        with pytest.raises(ProgramError, match="Too many open files"):
            fork_worker(server)
    assert children() <= before
    fork_worker(server).wait()


def test_a_program_that_sends_nothing_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for its first message is long, so the program is remembered as unable."""
    monkeypatch.setattr(module, "UNTIL_LOADED", 0.2)
    monkeypatch.setattr(module, "_unable", set())
    script = tmp_path / "criu"
    script.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {find_program()} "$@"\n')
    script.chmod(0o755)
    with pytest.raises(ForkServerUnavailableError):
        ForkServer(str(script), {}, SAVING)
    assert len(module._unable) == 1
    monkeypatch.setattr(module, "start_worker", None)  # the program is not started again
    with pytest.raises(ForkServerUnavailableError):
        ForkServer(str(script), {}, SAVING)


def test_a_static_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without a loader cannot preload a library: it is not started."""
    program = tmp_path / "criu"
    data = bytearray(Path(find_program()).read_bytes())
    assert not elf.is_static(find_program())
    (table,) = struct.unpack_from("Q", data, 32)
    size, count = struct.unpack_from("HH", data, 54)
    for at in range(table, table + size * count, size):
        if struct.unpack_from("I", data, at) == (3,):  # PT_INTERP
            struct.pack_into("I", data, at, 4)  # PT_NOTE
    program.write_bytes(data)
    monkeypatch.setattr(module, "start_worker", None)
    with pytest.raises(ForkServerUnavailableError, match="it is static"):
        ForkServer(str(program), {}, SAVING)


@pytest.mark.parametrize(
    "path", ["/a b/server.so", "/a:b/server.so", "/$LIB/server.so", "/none.so"]
)
def test_a_library_path_that_the_loader_would_misread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    """The loader ends a path at a space or colon, and would load the file that follows."""
    library = tmp_path / path[1:]
    if path != "/none.so":
        library.parent.mkdir()
        library.touch()
    monkeypatch.setattr(module, "IMAGE", str(library))
    monkeypatch.setattr(module, "start_worker", None)
    with pytest.raises(ForkServerUnavailableError):
        ForkServer(find_program(), {}, SAVING)


def test_a_batch_with_jobs_in_another_namespace() -> None:
    """The CRIU of a job that entered a network namespace is there, and that of no other job."""
    places = []

    def place(pid: int) -> str:
        return os.readlink(f"/proc/{pid}/ns/net")

    def here() -> None:
        places.append(("here", _worker_place(place)))

    with host() as other:

        def there() -> None:
            with other.entered():
                places.append(("there", _worker_place(place)))

        for done in run_many([here, there] * 4, parallel=2):
            done.get()
        ours = os.readlink("/proc/self/ns/net")
        assert {result == ours for kind, result in places if kind == "here"} == {True}
        assert {result == ours for kind, result in places if kind == "there"} == {False}


def _worker_place(place: Any) -> str:
    """Return the place of the worker that a call of this thread would use."""
    from pycriu_native._calls.call import CALL_RUNNER

    runner = CALL_RUNNER.get()
    assert isinstance(runner, ForkServerCache)
    worker = runner.connect(Worker(), (), SAVING)
    try:
        return str(place(worker.pid))
    finally:
        worker.wait()


def test_children_in_another_pid_namespace() -> None:
    """A server there would report the pids of that namespace, which the caller cannot use."""

    def inside() -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        assert not libc.unshare(0x20000000)
        with pytest.raises(ForkServerUnavailableError):
            ForkServer(find_program(), {}, SAVING)
        return str(version())

    (done,) = run_many([inside], parallel=1)
    assert done.get() == str(version())


def test_a_batch_leaves_nothing(spawn: Spawn, tmp_path: Path) -> None:
    """After a batch there is neither its fork server nor any worker."""
    target = spawn()
    before = children()
    done = dump_many(
        [target.pid],
        lambda pid: CriuOpts(images_directory=tmp_path / str(pid), leave_running=True),
    )
    assert [each.error for each in done] == [None]
    assert children() <= before
    assert target.runs_on()


def test_a_server_that_is_killed_in_a_batch(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other workers are started without a fork server."""
    target = spawn()
    made: list[int] = []
    fork_worker = ForkServer.fork_worker

    def grow_once(self: ForkServer, ends: Any, keep: Sequence[int]) -> tuple[int, int]:
        if self.pid in made:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            eventually(lambda: not is_alive(self.pid), "its end")
        made.append(self.pid)
        return fork_worker(self, ends, keep)

    monkeypatch.setattr(ForkServer, "fork_worker", grow_once)
    numbers = iter(range(100))
    done = dump_many(
        [target.pid] * 3,
        lambda pid: CriuOpts(images_directory=tmp_path / str(next(numbers)), leave_running=True),
        parallel=1,
    )
    assert [each.error for each in done] == [None] * 3
    assert len(made) >= 2
    assert target.runs_on()
