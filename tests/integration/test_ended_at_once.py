"""Programs with several threads that end at once after a restore: CRIU resumes one thread after the
other, and reports a failed restore if the process ends before it has resumed all of them.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from pycriu_native import (
    CriuOpts,
    RestoreClaimedError,
    RestoreJob,
    ResumedError,
    Worker,
    dump,
    restore_child,
)
from pycriu_native._transport.connection import Connection
from pycriu_native.snapshots import Snapshot, SnapshotProcess

from .support.processes import PATIENCE

REPO = Path(__file__).parents[2]

THREADS = """
import os, signal, sys, threading
for _ in range(8):
    threading.Thread(target=signal.sigwait, args=([signal.SIGUSR1],), daemon=True).start()
def end(file, how):
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"x")
    if how == "exit":
        sys.exit(7)
    if how == "_exit":
        os._exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os.execv(sys.executable, [sys.executable, "-c", "raise SystemExit(7)"])
"""
ENDS = {"exit": 7, "_exit": 7, "kill": -signal.SIGKILL, "exec": 7}
"""How the program ends, and its exit status."""

GUEST = f"""{THREADS}
from pycriu_native import guest
# It runs instead of CRIU, on the same processor, as soon as CRIU has resumed this thread.
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
guest.wait()
end(*sys.argv[1:])
"""
PLAIN = f"""{THREADS}
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
os.write(1, b"ready")
os.read(0, 1)
end(*sys.argv[1:])
"""


def _may_have_priority() -> bool:
    program = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
    return subprocess.run([sys.executable, "-c", program], stderr=DEVNULL).returncode == 0


pytestmark = pytest.mark.skipif(
    not _may_have_priority(), reason="SCHED_FIFO is not permitted: no program can end in time"
)


def on_one_processor(function: Callable[[], None]) -> None:
    """Call a function on a thread that has one processor, as have the processes that it starts."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


@contextmanager
def running(file: Path, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """The plain program, which ends when it reads a byte."""
    command = [sys.executable, "-c", PLAIN, str(file), how]
    with subprocess.Popen(
        command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.read(5) == b"ready"
            yield program
        finally:
            program.kill()


@contextmanager
def full_pipe() -> Iterator[int]:
    """A pipe with a byte."""
    reader, writer = os.pipe()
    os.write(writer, b"1")
    os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)


@pytest.mark.parametrize("share_memory", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("how", ENDS)
def test_a_guest_that_ends_at_once(tmp_path: Path, how: str, share_memory: bool) -> None:
    """Each copy is started, and has its exit status: guest.wait() returns after the restore."""
    effects = tmp_path / "effects"
    environment = {**os.environ, "PYTHONPATH": str(REPO)}

    def run() -> None:
        command = [sys.executable, "-c", GUEST]
        with Snapshot.take(command, tmp_path / "snapshot", env=environment) as snapshot:
            for count in (1, 2, 3):
                with snapshot.start([str(effects), how], share_memory=share_memory) as process:
                    process.wait(PATIENCE)
                assert process.returncode == ENDS[how]
                assert effects.read_text() == count * "x"

    on_one_processor(run)


def test_a_running_program_that_exits_at_once(tmp_path: Path) -> None:
    """A copy that was saved without_guest, and that ends before its restore, is a process that has
    ended.
    """
    effects = tmp_path / "effects"

    def run() -> None:
        with running(effects, "_exit") as program:
            snapshot = Snapshot.take(program, tmp_path / "snapshot", without_guest=True)
        with snapshot, full_pipe() as ready:
            process = snapshot.start(stdin=ready, stdout=DEVNULL)
            assert process.wait(PATIENCE) == 7
            assert process.poll() == 7
            process.kill()  # nothing, as it has ended
            assert process.pidfd == -1

    on_one_processor(run)
    assert effects.read_text() == "x"


@pytest.mark.parametrize("how", ["kill", "exec"])
def test_a_running_program_that_criu_kills(tmp_path: Path, how: str) -> None:
    """If CRIU may have killed it, the error says that it ran."""
    effects = tmp_path / "effects"

    def run() -> None:
        with running(effects, how) as program:
            snapshot = Snapshot.take(program, tmp_path / "snapshot", without_guest=True)
        with snapshot, full_pipe() as ready:
            with pytest.raises(ResumedError, match="the processes ran") as raised:
                snapshot.start(stdin=ready, stdout=DEVNULL)
            assert raised.value.status == -signal.SIGKILL

    on_one_processor(run)
    assert effects.read_text() == "x"


def test_a_failed_start_leaves_other_copies(tmp_path: Path) -> None:
    """A copy that was started and has ended during the call keeps its exit status."""

    def run() -> None:
        with running(tmp_path / "effects", "kill") as program:
            snapshot = Snapshot.take(program, tmp_path / "snapshot", without_guest=True)
        others: list[SnapshotProcess[bytes]] = []

        class Overtaken(Worker):
            """A worker; before it starts, another copy is started and ends."""

            def connect(self, *args: Any) -> Connection:
                with full_pipe() as ready:
                    stopped = CriuOpts(leave_stopped=True)
                    others.append(snapshot.start(stdin=ready, stdout=DEVNULL, opts=stopped))
                others[0].terminate()
                others[0].send_signal(signal.SIGCONT)
                select.select([others[0].pidfd], [], [])
                return Worker.connect(self, *args)

        with snapshot, full_pipe() as ready, pytest.raises(ResumedError):
            snapshot.start(stdin=ready, stdout=DEVNULL, via=Overtaken())
        assert [other.wait(PATIENCE) for other in others] == [-signal.SIGTERM]

    on_one_processor(run)


def dumped(file: Path, images: Path) -> tuple[int, list[str]]:
    """Dump the plain program; returns its pid, and the keys of its input and output."""
    with running(file, "_exit") as program:
        keys = [os.readlink(f"/proc/{program.pid}/fd/{number}") for number in (0, 1)]
        dump(program.pid, CriuOpts(images_directory=images))
        program.wait()
    return program.pid, keys


@pytest.mark.cures("ended-while-resumed")
def test_a_restore_whose_program_ends_at_once(tmp_path: Path) -> None:
    """The error of restore_child has the exit status; with leave_stopped the restore succeeds."""
    effects, images = tmp_path / "effects", tmp_path / "images"

    def run() -> None:
        pid, keys = dumped(effects, images)
        reader, output = os.pipe()
        os.close(reader)
        with full_pipe() as ready:
            inherited = [(ready, keys[0]), (output, keys[1])]
            opts = CriuOpts(images_directory=images, inherit_fds=inherited)
            with pytest.raises(ResumedError, match="leave_stopped=True") as raised:
                restore_child(opts)
            assert (raised.value.pid, raised.value.status) == (pid, 7)
            assert effects.read_text() == "x"
        with full_pipe() as ready:
            inherited = [(ready, keys[0]), (output, keys[1])]
            opts = CriuOpts(images_directory=images, inherit_fds=inherited, leave_stopped=True)
            result = restore_child(opts)
            assert effects.read_text() == "x"
            os.kill(result.pid, signal.SIGCONT)
            assert result.wait() == 7
            assert effects.read_text() == "xx"
        os.close(output)

    on_one_processor(run)


def test_a_restore_job_whose_program_ran(tmp_path: Path) -> None:
    """The claim of the job stays: an engine does not run the program a second time."""
    effects, images = tmp_path / "effects", tmp_path / "images"

    def run() -> None:
        _, keys = dumped(effects, images)
        with full_pipe() as ready, full_pipe() as output:
            inherited = [(ready, keys[0]), (output, keys[1])]
            job = RestoreJob(opts=CriuOpts(images_directory=images, inherit_fds=inherited))
            with pytest.raises(ResumedError):
                job()
            with pytest.raises(RestoreClaimedError):
                job()

    on_one_processor(run)
    assert effects.read_text() == "x"
