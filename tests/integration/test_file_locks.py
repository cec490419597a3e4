"""``file_locks``: locks on files are saved and restored with the process.

A lock excludes other processes, so CRIU releases one only on request: a dump of a process with a
lock is refused without ``file_locks``, and the process continues. With it the dump saves flock and
POSIX locks (``fcntl``), locks of open file descriptions, and leases.

The restore needs the field as well: without it the process is restored *without its locks, and
without an error*. Between the dump and the restore the locks are free. If another process has taken
one, the restore waits until it is released (flock and POSIX locks), or fails (other locks).
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, RestoreResult, dump, restore

from .conftest import Spawn
from .support.processes import Target, eventually

HOLDER = """
    import fcntl, struct

    file = open({file}, "r+b")
    {lock}
    serve(unlock=file.close)
"""
TRY = """
import fcntl, struct, sys

file = open(sys.argv[1], "r+b")
try:
    {lock}
except BlockingIOError:
    sys.exit(1)
"""

ALONE = "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
SHARED = "fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)"


def posix(first: int, length: int) -> str:
    """A POSIX lock on some bytes, owned by the process."""
    return f"fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, {length}, {first})"


def description(first: int, length: int) -> str:
    """A lock of the open file description on some bytes."""
    lock = f"struct.pack('hhqqi', fcntl.F_WRLCK, 0, {first}, {length}, 0)"
    return f"fcntl.fcntl(file, fcntl.F_OFD_SETLK, {lock})"


LOCKS = {
    "flock": (ALONE, [ALONE, SHARED], []),
    "shared flock": (SHARED, [ALONE], [SHARED]),
    "posix": (
        posix(10, 20),
        [posix(10, 1), posix(29, 1), posix(0, 0)],
        [posix(0, 10), posix(30, 0)],
    ),
    "description": (description(10, 20), [description(29, 1), posix(10, 1)], [description(30, 0)]),
}
"""For each kind: the lock of the process, a lock that conflicts with it, and one that does not."""

each_kind = pytest.mark.parametrize("kind", LOCKS)


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    """The file with the lock."""
    path = tmp_path / "locked"
    path.touch()
    return path


@pytest.fixture
def hold(spawn: Spawn, locked: Path) -> Spawn:
    """Start a process with a lock of this kind."""

    def start(kind: str) -> Target:
        return spawn(HOLDER.format(file=repr(str(locked)), lock=LOCKS[kind][0]))

    return start


def gets(file: Path, lock: str) -> bool:
    """Whether a second process can take the lock now."""
    words = [sys.executable, "-c", TRY.format(lock=lock), str(file)]
    status = subprocess.run(words, check=False).returncode
    assert status in (0, 1)
    return status == 0


def is_held(file: Path, kind: str) -> bool:
    """Whether other processes cannot take exactly the lock of the process."""
    _, kept_out, let_in = LOCKS[kind]
    assert all(gets(file, lock) for lock in let_in)
    answers = {gets(file, lock) for lock in kept_out}
    assert len(answers) == 1
    return answers == {False}


@each_kind
def test_a_lock_is_held_after_the_restore(
    hold: Spawn, locked: Path, images: Path, kind: str
) -> None:
    """A second process can take the lock only between the dump and the restore."""
    target = hold(kind)
    assert is_held(locked, kind)
    opts = CriuOpts(images_directory=images, file_locks=True)
    target.dump(opts)
    assert not is_held(locked, kind)
    restore(opts)
    assert is_held(locked, kind)
    target.ask("unlock")
    assert not is_held(locked, kind)


@each_kind
def test_a_process_left_running_keeps_its_lock(
    hold: Spawn, locked: Path, images: Path, kind: str
) -> None:
    """A dump with leave_running does not release the lock."""
    target = hold(kind)
    dump(target.pid, CriuOpts(images_directory=images, file_locks=True, leave_running=True))
    assert is_held(locked, kind)
    assert target.runs_on()


@each_kind
@pytest.mark.parametrize("file_locks", [None, False])
def test_without_it_the_dump_is_refused(
    hold: Spawn, locked: Path, images: Path, kind: str, file_locks: bool | None
) -> None:
    """The error names the field; the process continues with its lock."""
    target = hold(kind)
    with pytest.raises(CriuError, match="file_locks=True on dump and restore") as caught:
        dump(target.pid, CriuOpts(images_directory=images, file_locks=file_locks))
    assert caught.value.options == ("file_locks",)
    assert target.runs_on()
    assert is_held(locked, kind)


def test_a_process_without_locks_needs_no_field(
    spawn: Spawn, hold: Spawn, locked: Path, images: Path
) -> None:
    """Locks of other processes on the same file are irrelevant."""
    target = spawn(f"file = open({str(locked)!r}, 'r+b')\nserve()")
    hold("flock")
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    restore(opts)
    assert target.runs_on()
    assert is_held(locked, "flock")


@each_kind
def test_the_restore_needs_it_too(hold: Spawn, locked: Path, images: Path, kind: str) -> None:
    """A restore without it succeeds, but the process has lost its lock."""
    target = hold(kind)
    opts = CriuOpts(images_directory=images, file_locks=True)
    target.dump(opts)
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()
    assert not is_held(locked, kind)


def waiting(file: Path) -> bool:
    """Whether a process waits for a lock on the file."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{file.stat().st_ino} " in line for line in lines)


@pytest.mark.parametrize("kind", ["flock", "posix"])
def test_a_restore_waits_for_a_lock_that_is_taken(
    hold: Spawn, locked: Path, images: Path, kind: str
) -> None:
    """The restore waits while another process has the lock, and completes when it is released."""
    target = hold(kind)
    opts = CriuOpts(images_directory=images, file_locks=True)
    target.dump(opts)
    thief = hold(kind)

    results: list[RestoreResult] = []
    restoring = threading.Thread(target=lambda: results.append(restore(opts)))
    restoring.start()
    try:
        eventually(lambda: waiting(locked), "the restore's waiting")
        assert not results
    finally:
        thief.ask("unlock")
        restoring.join()
    assert results[0].pid == target.pid
    assert target.runs_on()
    assert is_held(locked, kind)


def test_a_restore_fails_where_it_cannot_wait(hold: Spawn, locked: Path, images: Path) -> None:
    """A conflicting lock of an open file description fails the restore, and the images are
    unchanged.
    """
    target = hold("description")
    opts = CriuOpts(images_directory=images, file_locks=True)
    target.dump(opts)
    thief = hold("description")
    with pytest.raises(CriuError, match="Can not set ofd lock"):
        restore(opts)
    target.until_free()
    thief.ask("unlock")
    restore(opts)
    assert is_held(locked, "description")


LEASE = """
    import fcntl, signal

    signals = []
    def give_up(*_):
        signals.append(1)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    signal.signal(signal.SIGIO, give_up)

    (HERE / "leased").write_text("content")
    file = open(HERE / "leased", "rb")
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    serve(signals=lambda: len(signals), lease=lambda: fcntl.fcntl(file, fcntl.F_GETLEASE))
"""


def test_a_lease(spawn: Spawn, images: Path) -> None:
    """A lease is restored: the process gets a signal when another process opens the file for
    writing.
    """
    target = spawn(LEASE)
    assert target.ask("lease") == fcntl.F_RDLCK
    with pytest.raises(CriuError, match="file_locks=True"):
        dump(target.pid, CriuOpts(images_directory=images))
    opts = CriuOpts(images_directory=images, file_locks=True)
    target.dump(opts)
    restore(opts)
    assert target.ask("lease") == fcntl.F_RDLCK
    assert target.ask("signals") == 0
    (target.directory / "leased").write_text("changed")  # waits until the lease is given up
    assert target.ask("signals") == 1
