"""The statements of SECURITY.md about snapshots."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest

from pycriu_native import DeadlineError, ImagesError, OptionError
from pycriu_native.snapshots import Snapshot

from .support.processes import PATIENCE
from .test_snapshots import COMMAND, ENVIRONMENT

NOBODY = 65534

SECRETIVE = """
import sys
from pycriu_native import guest

secret = bytearray(64)
with open(sys.argv[1], "rb", buffering=0) as file:  # no other object ever holds it
    file.readinto(secret)

@guest.before_snapshot
def forget():
    if sys.argv[2] == "forget":
        secret[:] = bytes(len(secret))

@guest.after_start
def learn(start):
    secret[:] = start.variables["SECRET"].encode()

guest.wait()
print(secret.decode(), flush=True)
"""


def test_a_snapshot_of_another_user(tmp_path: Path) -> None:
    """A directory of another user is refused, and nothing is started."""
    snapshot = Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT)
    os.chown(snapshot.directory, NOBODY, NOBODY)
    with pytest.raises(OptionError, match="images_directory"):
        snapshot.start(stdin=DEVNULL)
    os.chown(snapshot.directory, os.geteuid(), os.getegid())
    with snapshot.start(stdin=DEVNULL) as process:
        assert process.wait(PATIENCE) == 0


def test_a_secret_is_kept_out(tmp_path: Path) -> None:
    """A secret that a function before the snapshot overwrites is not in the images; each copy gets
    its own. Python objects leave traces in freed memory, so the secret is read into a buffer that
    is overwritten.
    """
    needle = b"-".join([b"hunter", b"two", b"and", b"more"])
    (tmp_path / "secret").write_bytes(needle)
    for word in ("keep", "forget"):
        command = [sys.executable, "-c", SECRETIVE, str(tmp_path / "secret"), word]
        snapshot = Snapshot.take(command, tmp_path / word, env=ENVIRONMENT)
        images = snapshot.directory.iterdir()
        assert any(needle in path.read_bytes() for path in images) is (word == "keep")
    with snapshot.start(extra_env={"SECRET": "another"}, stdout=PIPE, text=True) as process:
        assert process.communicate(timeout=PATIENCE)[0] == "another\n"


def test_a_secret_that_a_copy_has_replaced(tmp_path: Path) -> None:
    """An incremental snapshot of the copy still has the secret, in the pages of its parents."""
    needle = b"-".join([b"hunter", b"three", b"and", b"more"])
    (tmp_path / "secret").write_bytes(needle)
    command = [sys.executable, "-c", SECRETIVE + "guest.wait()", str(tmp_path / "secret"), "keep"]
    snapshot = Snapshot.take(command, tmp_path / "first", env=ENVIRONMENT)
    for incremental in (True, False):
        with snapshot.start(
            extra_env={"SECRET": "another"},
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            savable=True,
        ) as process:
            child = Snapshot.take(
                process,
                tmp_path / str(incremental),
                incremental=incremental,
                deadline=PATIENCE,
            )
        files = [path for path in child.directory.rglob("*") if path.is_file()]
        assert any(needle in path.read_bytes() for path in files) is incremental


@pytest.mark.parametrize("by_zygote", [False, True])
def test_a_counter_that_another_process_has_locked(tmp_path: Path, by_zygote: bool) -> None:
    """A start waits for the lock, which each user who can read the file can hold, until its
    deadline or Ctrl-C.
    """
    with Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT) as snapshot:
        with snapshot.start(stdin=DEVNULL):
            pass
        with (
            contextlib.ExitStack() as owned,
            open(snapshot.directory / "starts") as locked,
        ):
            starts = owned.enter_context(snapshot.zygote()) if by_zygote else snapshot
            fcntl.flock(locked, fcntl.LOCK_EX)
            with pytest.raises(DeadlineError, match="has locked the snapshot"):
                starts.start(stdin=DEVNULL, deadline=0.2)
            handler = signal.signal(signal.SIGINT, signal.default_int_handler)
            interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
            try:
                interrupt.start()
                with pytest.raises(KeyboardInterrupt):
                    starts.start(stdin=DEVNULL)
            finally:
                interrupt.cancel()
                signal.signal(signal.SIGINT, handler)
            fcntl.flock(locked, fcntl.LOCK_UN)
            with starts.start(stdin=DEVNULL) as process:
                assert process.number == 2


def test_a_fork_while_the_counter_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that another thread of the caller forks meanwhile does not keep the lock."""
    snapshot = Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT)
    kept = []  # duplicates, as the child has them
    read = os.pread

    def reading(fd: int, size: int, offset: int) -> bytes:
        kept.append(os.dup(fd))
        return read(fd, size, offset)

    monkeypatch.setattr(os, "pread", reading)
    try:
        for _ in range(2):
            snapshot._next_number(time.monotonic() + 0.2)
    finally:
        for fd in kept:
            os.close(fd)
    assert len(kept) == 2


def test_a_counter_that_was_replaced(tmp_path: Path) -> None:
    """A counter of the starts that is no file with a number is an ``ImagesError`` with a cure, and
    a link is not followed.
    """
    snapshot = Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT)
    counter = snapshot.directory / "starts"
    for data in ("garbage", "-5", "1x"):
        counter.write_text(data)
        with pytest.raises(ImagesError, match="has no number of a start; remove it"):
            snapshot.start(stdin=DEVNULL)
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink(tmp_path / "created", path)):
        counter.unlink()
        make(counter)
        with pytest.raises(ImagesError, match=r"starts .*; remove it"):
            snapshot.start(stdin=DEVNULL)
        if counter.is_dir():
            counter.rmdir()
            counter.touch()
    assert not (tmp_path / "created").exists()
    counter.unlink()
    with snapshot.start(stdin=DEVNULL) as process:
        assert process.number == 1
