"""Dump and restore of a process with many kinds of state, checked from inside and outside."""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path

import pytest

from pycriu_native import (
    CriuOpts,
    ImagesError,
    NoSuchProcessError,
    OptionError,
    PidInUseError,
    dump,
    restore,
)

from .conftest import Spawn
from .support.processes import PATIENCE, eventually, free_pid, is_alive, reap_all, tree

RICH = """
    import hashlib, os, signal, threading, time

    memory = bytearray(os.urandom(1 << 20) * 4)
    hits = []
    signal.signal(signal.SIGUSR1, lambda *_: hits.append(1))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    os.kill(os.getpid(), signal.SIGUSR2)  # pending for ever

    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait, daemon=True) for _ in range(5)]
    for thread in threads: thread.start()

    file = open(HERE / "data", "w+b", buffering=0)
    file.write(b"0123456789" * 100)
    file.seek(321)

    reader, writer = os.pipe()
    os.write(writer, b"still in the pipe")

    child = os.fork()
    if child == 0:
        while True: time.sleep(0.01)

    serve(
        checksum=lambda: hashlib.sha256(memory).hexdigest(),
        offset=lambda: os.lseek(file.fileno(), 0, os.SEEK_CUR),
        threads=threading.active_count,
        child=lambda: child,
        pipe=lambda: os.read(reader, 100).decode(),
        pending=lambda: sorted(signal.sigpending()),
        hits=lambda: len(hits),
    )
"""


def test_all_parts_of_a_process_are_restored(spawn: Spawn, images: Path) -> None:
    """Memory, threads, children, file offsets, pipes and signals are restored."""
    target = spawn(RICH)
    kept = ("checksum", "offset", "threads", "child", "pending")
    before = {name: target.ask(name) for name in kept}
    os.kill(target.pid, signal.SIGUSR1)
    eventually(lambda: target.ask("hits") == 1, "the signal's arrival")
    ticks = target.ask("ticks")
    tasks = len(os.listdir(f"/proc/{target.pid}/task"))

    result = target.dump(CriuOpts(images_directory=images))
    assert not is_alive(target.pid)
    assert not is_alive(before["child"])
    # Its zombie keeps the number of the session; process 1 reaps it.
    eventually(lambda: not os.path.exists(f"/proc/{before['child']}"), "the child's reaping")
    assert result.images == str(images)
    assert result.log == str(images / "dump.log")
    assert result.statistics is not None
    assert result.statistics.pages_written * mmap.PAGESIZE > 4 * 2**20
    assert result.statistics.frozen_time > 0

    restored = restore(CriuOpts(images_directory=images))
    assert restored.pid == target.pid
    assert restored.statistics is not None
    assert restored.statistics.pages_restored > 0
    after = {name: target.ask(name) for name in before}
    assert after == before
    assert len(os.listdir(f"/proc/{target.pid}/task")) == tasks
    assert target.ask("pipe") == "still in the pipe"
    assert target.ask("hits") == 1
    assert target.ask("ticks") >= ticks
    os.kill(target.pid, signal.SIGUSR1)
    eventually(lambda: target.ask("hits") == 2, "a signal's arrival in the restored process")
    assert is_alive(before["child"])
    assert target.runs_on()


def test_leave_running(spawn: Spawn, images: Path) -> None:
    """With leave_running the process continues, and no step of its work is lost."""
    target = spawn()
    ticks = target.ask("ticks")
    result = dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    assert not result.pid_free
    assert target.ask("ticks") > ticks
    assert target.runs_on()


def test_pid_free_reports_a_free_pid(spawn: Spawn, images: Path) -> None:
    """A zombie child of the caller keeps its pid, as the result of the dump reports."""
    target = spawn()
    result = dump(target.pid, CriuOpts(images_directory=images))
    assert not result.pid_free
    with pytest.raises(PidInUseError, match=f"waitpid\\({target.pid}, 0\\)") as caught:
        restore(CriuOpts(images_directory=images))
    assert isinstance(caught.value, FileExistsError)
    assert caught.value.verb == "restore"
    assert caught.value.log == str(images / "restore.log")
    target.reap()
    assert restore(CriuOpts(images_directory=images)).pid == target.pid


def test_a_parent_that_does_not_reap(spawn: Spawn, images: Path) -> None:
    """The wait for another process's zombie is limited by an argument, and the result has its
    length.
    """
    parent = spawn("""
        import os
        child = os.fork()
        if child == 0:
            os.setsid()
            import time; time.sleep(1e6)
        serve()
        """)
    [child] = [pid for pid in tree(parent.pid) if pid != parent.pid]
    eventually(lambda: os.getsid(child) == child, "its session")
    opts = CriuOpts(images_directory=images, leave_running=False)
    result = dump(child, opts, reap_timeout=0.2)
    assert not result.pid_free
    assert result.reap_wait >= 0.2
    os.kill(parent.pid, signal.SIGKILL)
    with pytest.raises(OptionError, match="reap_timeout"):
        dump(child, opts, reap_timeout=-1)


def test_a_restored_process_that_is_dumped_again_is_gone(spawn: Spawn, images: Path) -> None:
    """The call waits until init reaps it: the pid of a process that is not a child of the caller is
    free.
    """
    target = spawn()
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    restore(opts)
    assert dump(target.pid, opts, reap_timeout=PATIENCE).pid_free
    assert not os.path.exists(f"/proc/{target.pid}")
    restore(opts)
    assert target.runs_on()


def test_a_pid_that_is_taken(spawn: Spawn, images: Path) -> None:
    """A restore while the original runs is refused; the images are unchanged."""
    target = spawn()
    opts = CriuOpts(images_directory=images)
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    with pytest.raises(PidInUseError, match=f"pid {target.pid} is taken by a running process"):
        restore(opts)
    assert target.runs_on()
    target.end()
    restore(opts)
    assert target.runs_on()


def test_a_process_that_is_gone(images: Path) -> None:
    """An unused pid raises ProcessLookupError."""
    pid = free_pid()
    with pytest.raises(NoSuchProcessError) as caught:
        dump(pid, CriuOpts(images_directory=images))
    assert isinstance(caught.value, ProcessLookupError)
    assert caught.value.pid == pid


def test_images_that_are_missing(tmp_path: Path) -> None:
    """A restore of an empty directory is refused."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImagesError) as caught:
        restore(CriuOpts(images_directory=tmp_path / "empty"))
    assert isinstance(caught.value, OSError)


def test_a_hundred_times(orphans: None, spawn: Spawn, images: Path) -> None:
    """One process is dumped and restored a hundred times: its state is kept, and nothing leaks.

    (The fixture compares descriptors, children and threads before and after.)
    """
    target = spawn(RICH)
    checksum = target.ask("checksum")
    opts = CriuOpts(images_directory=images)
    for _ in range(100):
        dump(target.pid, opts)
        reap_all()
        restore(opts)
    assert target.ask("checksum") == checksum
    assert target.runs_on()
