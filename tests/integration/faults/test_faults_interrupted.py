"""A deadline, or Ctrl-C, at random instants of dumps of processes of several sizes.

CRIU's next write fails then, and CRIU undoes its work. At each instant the process must continue,
untraced, with its state and without CRIU's code; the directory must have its previous files; and
another dump of the process must work.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest

from pycriu_native import (
    CriuOpts,
    DeadlineError,
    ImagesError,
    Notification,
    Notify,
    dump,
    page_server_child,
    pre_dump,
    restore,
)

from ..conftest import Spawn
from ..support.features import needs_soft_dirty
from ..support.processes import Target, eventually, is_alive, kill, reap_all, state, tree
from ..support.workers import workers
from . import matrix
from .faults import code_in
from .matrix import Late
from .test_faults_random import INSTANTS, SEED

SCENARIO = """
    import mmap, os, threading, time, zlib
    memory = bytearray(os.urandom(1 << 20)) * {mebibytes}
    beats = mmap.mmap(-1, 4096)
    for number in range({children}):
        if os.fork() == 0:
            own = bytearray(os.urandom(1 << 20)) * ({mebibytes} // 8 + 1)
            while True:
                beats[number] = (beats[number] + 1) % 256
                time.sleep(0.001)
    for _ in range({threads}):
        threading.Thread(target=time.sleep, args=[1e6], daemon=True).start()
    serve(
        memory=lambda: zlib.crc32(memory),
        threads=threading.active_count,
        beats=lambda: list(beats[:{children}]),
    )
"""

SIZES = {
    "4 MiB": {"mebibytes": 4, "children": 0, "threads": 0},
    "8 MiB, 12 threads": {"mebibytes": 8, "children": 0, "threads": 12},
    "16 MiB, 6 processes": {"mebibytes": 16, "children": 5, "threads": 2},
    "256 MiB, 3 processes": {"mebibytes": 256, "children": 2, "threads": 2},
}


class Subject:
    """The process, and its state before."""

    def __init__(self, spawn: Spawn, name: str) -> None:
        self.size = SIZES[name]
        self.target: Target = spawn(SCENARIO.format(**self.size))
        self.pid = self.target.pid
        self.tree = tree(self.target.pid)
        self.memory = self.target.ask("memory")
        self.maps = self._maps()

    def _maps(self) -> list[list[str]]:
        """The mappings of each process; the heap of the responding one moves."""
        return [
            [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "fd:" in line]
            for pid in self.tree
        ]

    def is_intact(self) -> bool:
        """Whether all run untraced, with their state and nothing more."""
        for pid in self.tree:
            assert state(pid) in ("R", "S", "D"), pid
            assert "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text()
            assert not code_in(pid)
        before = self.target.ask("beats")
        eventually(
            lambda: all(a != b for a, b in zip(before, self.target.ask("beats"), strict=True)),
            "progress of its children",
        )
        assert self.target.ask("threads") == self.size["threads"] + 1
        assert self.target.ask("memory") == self.memory
        return self._maps() == self.maps


@pytest.fixture
def alarm() -> Iterator[None]:
    """SIGALRM is as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


# What a signal's handler raises in a callback of the garbage collector is printed and lost.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["a deadline", "Ctrl-C"])
@pytest.mark.parametrize("name", SIZES)
def test_a_dump(spawn: Spawn, tmp_path: Path, alarm: None, name: str, how: str) -> None:
    """An interrupted dump is undone at once and nothing remains, or it is complete."""
    chance = random.Random(f"{SEED} {name} {how}")
    subject = Subject(spawn, name)
    opts = CriuOpts(images_directory=tmp_path / "images", leave_running=True)
    started = time.monotonic()
    dump(subject.pid, opts)
    span = time.monotonic() - started
    undone = 0
    for number in range(5 * INSTANTS):
        if number >= INSTANTS and undone:
            break  # all of the first can come too late, after a slow first dump
        opts = replace(opts, images_directory=tmp_path / str(number))
        instant = chance.uniform(0, span)
        due = time.monotonic() + instant
        error: BaseException | None = None
        try:
            if how == "a deadline":
                dump(subject.pid, opts, deadline=instant)
            else:
                signal.setitimer(signal.ITIMER_REAL, instant)
                dump(subject.pid, opts)
                signal.setitimer(signal.ITIMER_REAL, 0)
        except (DeadlineError, KeyboardInterrupt) as caught:
            error = caught
        late = time.monotonic() - due
        assert not workers()
        assert subject.is_intact()
        if error is None or hasattr(error, "result"):
            assert (tmp_path / str(number) / "inventory.img").exists()
            shutil.rmtree(tmp_path / str(number))
            span = min(span, instant + late)
            continue
        message = str(error) + "".join(getattr(error, "__notes__", ()))
        if not message:
            # CRIU had not begun, or the call had returned already.
            images = tmp_path / str(number)
            left = os.listdir(images) if images.exists() else []
            assert left in ([], ["dump.log"]) or "inventory.img" in left
            shutil.rmtree(images, ignore_errors=True)
            continue
        undone += 1
        assert f"dump of pid {subject.pid} undone after" in message
        assert "was ended" not in message
        assert os.listdir(tmp_path / str(number)) in ([], ["dump.log"])
        gets = f"`{type(error).__name__}`"
        matrix.lates.append(Late("dump", f"any instant, {name}", gets, "runs, intact", late))
    assert undone
    dump(subject.pid, replace(opts, images_directory=tmp_path / "last", leave_running=None))
    subject.target.reap()
    restore(CriuOpts(images_directory=tmp_path / "last"))
    assert subject.target.ask("memory") == subject.memory


@needs_soft_dirty
def test_a_pre_dump(spawn: Spawn, tmp_path: Path) -> None:
    """A pre-dump is made by a child of the worker, which is stopped in the same way."""
    chance = random.Random(SEED)
    subject = Subject(spawn, "256 MiB, 3 processes")
    opts = CriuOpts(images_directory=tmp_path / "images", track_mem=True)
    started = time.monotonic()
    pre_dump(subject.pid, opts)
    span = time.monotonic() - started
    for number in range(INSTANTS):
        opts = replace(opts, images_directory=tmp_path / str(number))
        try:
            pre_dump(subject.pid, opts, deadline=chance.uniform(0, span))
        except DeadlineError as error:
            if not hasattr(error, "result"):
                assert os.listdir(tmp_path / str(number)) in ([], ["pre-dump.log"])
        assert not workers()
        assert subject.is_intact()
    dump(subject.pid, CriuOpts(images_directory=tmp_path / "last"))
    subject.target.reap()
    restore(CriuOpts(images_directory=tmp_path / "last"))
    assert subject.target.ask("memory") == subject.memory


def test_a_dump_to_a_page_server(spawn: Spawn, tmp_path: Path) -> None:
    """Pages are sent over a connection, which is shut down."""
    chance = random.Random(SEED)
    subject = Subject(spawn, "256 MiB, 3 processes")
    opts = CriuOpts(leave_running=True)
    span = 0.0
    undone = 0
    for number in range(INSTANTS + 1):
        there = CriuOpts(
            images_directory=tmp_path / f"there-{number}", page_server=("127.0.0.1", 0)
        )
        with page_server_child(there) as server:
            started = time.monotonic()
            try:
                dump(
                    subject.pid,
                    replace(
                        opts,
                        images_directory=tmp_path / str(number),
                        page_server=("127.0.0.1", server.result.port),
                    ),
                    deadline=chance.uniform(0, span) if number else None,
                )
            except DeadlineError:
                undone += 1
                assert os.listdir(tmp_path / str(number)) in ([], ["dump.log"])
            else:
                took = time.monotonic() - started
                span = min(span or took, took)
        assert not workers()
        assert subject.is_intact()
        shutil.rmtree(tmp_path / f"there-{number}")
    assert undone


def test_a_restore(spawn: Spawn, tmp_path: Path, orphans: None) -> None:
    """The processes that are being made are ended; the images restore afterwards."""
    chance = random.Random(SEED)
    subject = Subject(spawn, "256 MiB, 3 processes")
    opts = CriuOpts(images_directory=tmp_path / "images")
    dump(subject.pid, opts)
    subject.target.reap()
    reap_all()
    started = time.monotonic()
    restore(opts)
    span = time.monotonic() - started
    for _ in range(INSTANTS):
        for pid in subject.tree:
            kill(pid)
        reap_all()
        instant = chance.uniform(0, span)
        due = time.monotonic() + instant
        error: DeadlineError | None = None
        try:
            restore(opts, deadline=instant)
        except DeadlineError as caught:
            error = caught
        late = time.monotonic() - due
        assert not any("was ended" in note for note in getattr(error, "__notes__", ()))
        if error is not None and not hasattr(error, "result"):
            assert not any(is_alive(pid) for pid in subject.tree)
            row = Late("restore", "any instant", "`DeadlineError`", "none", late)
            matrix.lates.append(row)
            reap_all()
            restore(opts)
        assert not workers()
        assert subject.target.ask("memory") == subject.memory


def test_a_refusal_at_the_end(spawn: Spawn, tmp_path: Path) -> None:
    """All images are written by then, and all are removed; those of an earlier dump are
    restored.
    """
    subject = Subject(spawn, "4 MiB")
    opts = CriuOpts(images_directory=tmp_path / "images", leave_running=True)

    def refuse(notification: Notification) -> None:
        if notification.action is Notify.POST_DUMP:
            assert (tmp_path / "images" / "inventory.img").exists()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        dump(subject.pid, opts, on_notify=refuse)
    assert os.listdir(tmp_path / "images") == ["dump.log"]
    with pytest.raises(ImagesError):
        restore(CriuOpts(images_directory=tmp_path / "images"))
    dump(subject.pid, opts)
    before = {path.name: path.stat().st_ino for path in (tmp_path / "images").glob("*.img")}
    with pytest.raises(ValueError, match="no"):
        dump(subject.pid, opts, on_notify=refuse)
    assert before == {path.name: path.stat().st_ino for path in (tmp_path / "images").glob("*.img")}
    assert subject.is_intact()


def test_a_file_size_limit_of_the_caller(spawn: Spawn, tmp_path: Path) -> None:
    """Images become larger than it allows: an error, no signal that ends CRIU in the middle."""
    subject = Subject(spawn, "8 MiB, 12 threads")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    opts = CriuOpts(images_directory=tmp_path / "images")
    limit = 1 << 20
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(subject.pid), str(tmp_path / "images"), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before
    assert "File too large" in done.stdout
    assert subject.is_intact()
    assert not list((tmp_path / "images").glob("*.img"))
    dump(subject.pid, replace(opts, leave_running=True))
    assert subject.is_intact()


LIMITED = """
import resource, sys
from pycriu_native import CriuError, CriuOpts, dump

limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    dump(int(sys.argv[1]), CriuOpts(images_directory=sys.argv[2]))
except CriuError as error:
    print(type(error).__name__, error, *error.lines)
"""


def test_what_is_restored_ignores_no_more_than_it_did(
    spawn: Spawn, tmp_path: Path, orphans: None
) -> None:
    """Workers ignore SIGXFSZ: the restored processes do not, nor does a command after it."""
    subject = Subject(spawn, "16 MiB, 6 processes")
    before = [_ignored(pid) for pid in subject.tree]
    opts = CriuOpts(images_directory=tmp_path / "images")
    dump(subject.pid, opts)
    subject.target.reap()
    reap_all()
    restore(opts)
    assert [_ignored(pid) for pid in subject.tree] == before
    for pid in subject.tree:
        kill(pid)
    reap_all()
    message = tmp_path / "told"
    command = [
        "/bin/sh",
        "-c",
        f"grep SigIgn /proc/$$/status >{message}.partial; mv {message}.partial {message}",
    ]
    restore(replace(opts, exec_cmd=command))
    eventually(message.exists, "what the command says")
    assert not int(message.read_text().split()[1], 16) & 1 << (signal.SIGXFSZ - 1)
    for pid in subject.tree:
        kill(pid)
    reap_all()


def _ignored(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("SigIgn"))
