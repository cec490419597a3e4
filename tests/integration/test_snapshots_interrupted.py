"""Starts of copies that a signal's handler interrupts, as Ctrl-C does, and that leave nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from types import FrameType, ModuleType
from typing import Any

import pytest

from pycriu_native import CriuError, OptionError
from pycriu_native._support import unpatched
from pycriu_native._system.file_lock import lock
from pycriu_native.snapshots import (
    Record,
    Snapshot,
    SnapshotProcess,
    copy_mounts,
    forked_workers,
    host_check,
    namespaces,
    parked,
    restore,
    saving,
    shared_template,
    sharing,
    start_worker,
    template,
    uninterrupted,
    zygote,
)
from pycriu_native.snapshots import snapshot as snapshot_module

from .support.leftovers import Snapshot as State
from .support.processes import PATIENCE, children, eventually, is_alive

REPO = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO)}

PROGRAM = """
from pycriu_native import guest
guest.wait()
import signal; signal.pause()
"""


def no_more_than(before: State, what: str) -> None:
    """Wait until nothing is left that was not there before."""
    eventually(
        lambda: not State.take().grown_since(before),
        what,
        lambda: str(State.take().grown_since(before)),
    )


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A snapshot of a program that waits."""
    directory = tmp_path_factory.mktemp("snapshots") / "waits"
    return Snapshot.take([sys.executable, "-c", PROGRAM], directory, env=ENVIRONMENT)


@pytest.fixture
def snapshot(taken: Snapshot) -> Iterator[Snapshot]:
    """The snapshot; its first copy has been started, so that every start takes the same steps."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with taken:
            kill(taken.start())
            yield taken
    finally:
        signal.signal(signal.SIGINT, handler)


def kill(process: SnapshotProcess[Any]) -> None:
    """End a copy."""
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL


def interrupting(function: Callable[..., Any], times: list[int]) -> Callable[..., Any]:
    """The function; the main thread gets SIGINT when it has worked, and before it returns."""

    def replaced(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if times:
            times.pop()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return result

    return replaced


STEPS: list[tuple[ModuleType | type, str]] = [
    (namespaces, "spawn"),
    (namespaces.Namespaces, "open"),
    (namespaces.Namespaces, "expect"),
    (namespaces.Namespaces, "wait_until_ready"),
    (namespaces.Namespaces, "restored"),
    (start_worker.StartWorker, "connect"),
    (start_worker._Guard, "end"),
    (sharing.Sharing, "chosen"),
    (snapshot_module.Snapshot, "_next_number"),
    (restore, "restore_child"),
    (restore, "RestoredChild"),
    (restore, "send_line"),
    (restore, "SnapshotProcess"),
    (snapshot_module, "start_copy"),
]
"""Steps of a start."""


@pytest.mark.parametrize("share_memory", [False, True], ids=["plain", "shared"])
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[f"{o.__name__}.{n}" for o, n in STEPS])
def test_a_start_that_is_interrupted(
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    share_memory: bool,
) -> None:
    """The exception of the handler is raised, and no process and no descriptor remains."""
    kill(snapshot.start(share_memory=share_memory))  # the fork server remains
    before = children()
    times = [1]
    monkeypatch.setattr(owner, name, interrupting(getattr(owner, name), times))
    with pytest.raises(KeyboardInterrupt):
        snapshot.start(share_memory=share_memory)
    assert times == []
    eventually(lambda: children() <= before, "the end of the copy")
    kill(snapshot.start(share_memory=share_memory))


def test_a_start_that_is_interrupted_often(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception is raised after the start was undone."""
    kill(snapshot.start(share_memory=False))
    before = children()
    times = [1, 1, 1]
    for name in ("expect", "open"):
        method = getattr(namespaces.Namespaces, name)
        monkeypatch.setattr(namespaces.Namespaces, name, interrupting(method, times))
    with pytest.raises(KeyboardInterrupt):
        snapshot.start(share_memory=False)
    assert times == [1]  # the start was undone after the second of these steps
    eventually(lambda: children() <= before, "the end of the copy")


def test_a_wait_for_another_thread(snapshot: Snapshot) -> None:
    """Ctrl-C ends the wait for a thread that reads the template."""
    kill(snapshot.start(share_memory=True))
    (template,) = snapshot._sharing._templates
    released = threading.Event()
    ended = threading.Event()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        if not ended.wait(PATIENCE):
            released.set()
            template._lock.release()

    template._lock.acquire()
    other = threading.Timer(0.5, interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        snapshot.start()
    ended.set()
    other.join()
    assert not released.is_set()
    template._lock.release()
    kill(snapshot.start(share_memory=True))


def test_a_result_after_an_interruption(snapshot: Snapshot) -> None:
    """A result that comes nevertheless is undone, and an error is the cause of the exception."""
    undone: list[str] = []
    main = threading.main_thread().ident or 0

    def succeed() -> str:
        signal.pthread_kill(main, signal.SIGINT)
        eventually(uninterrupted.interruption, "the interruption")
        return "result"

    def fail() -> str:
        raise CriuError(succeed())

    for function in (succeed, fail):
        with pytest.raises(KeyboardInterrupt) as raised:
            uninterrupted.uninterrupted("start", function, undone.append)
    assert str(raised.value.__cause__) == "result"
    assert undone == ["result"]


@pytest.mark.parametrize("obstacle", ["again", "again within", "no thread"])
def test_an_undo_with_an_obstacle(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    """A further interruption before the undo begins, or a limit of threads: it is undone."""
    undone: list[str] = []
    work: Any = None
    times = [1] * (50 if obstacle == "no thread" else 1)

    def fail_once(function: Callable[..., Any], error: type[BaseException]) -> Callable[..., Any]:
        def replaced(*args: Any, **options: Any) -> Any:
            if times and getattr(work, "results", None):
                times.pop()
                raise error("can't start new thread")
            return function(*args, **options)

        return replaced

    def begin(self: Any, *args: Any) -> None:
        nonlocal work
        work = work or self
        init(self, *args)

    def wait_to_end(self: Any, **options: Any) -> None:
        wait(self, **options)
        if self is work:
            raise KeyboardInterrupt  # between the end of the function and the return of its result

    init, wait = uninterrupted.Work.__init__, uninterrupted.Work.wait_to_end
    monkeypatch.setattr(uninterrupted.Work, "__init__", begin)
    monkeypatch.setattr(uninterrupted.Work, "wait_to_end", wait_to_end)
    owner, name, error = {
        "again": (uninterrupted.Work, "conclude", KeyboardInterrupt),
        "again within": (unpatched.RawThread, "__init__", KeyboardInterrupt),
        "no thread": (unpatched, "_start", RuntimeError),
    }[obstacle]
    monkeypatch.setattr(owner, name, fail_once(getattr(owner, name), error))
    with pytest.raises(KeyboardInterrupt):
        uninterrupted.uninterrupted("start", lambda: "result", undone.append)
    assert len(times) == (49 if obstacle == "no thread" else 0)  # one attempt
    assert undone == ["result"]


# ---- other calls ----


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The pid of a running process."""
    null = subprocess.DEVNULL
    with subprocess.Popen(
        ["sleep", "1000"], stdin=null, stdout=null, stderr=null, start_new_session=True
    ) as process:
        yield process.pid
        process.kill()


TAKING: list[tuple[ModuleType | type, str]] = [
    (parked, "kill_on_event"),
    (parked, "read_ready"),
    (host_check, "mapped_files"),
    (saving, "dump"),
    (saving, "_accept_any_file"),
    (Record, "read"),
]
"""Steps of ``take`` for a command."""


@pytest.mark.parametrize(("owner", "name"), TAKING, ids=[name for _, name in TAKING])
def test_a_command_that_is_taken(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: Any, name: str
) -> None:
    """The program is killed, and the directory removed."""
    before = State.take()
    times = [1]
    monkeypatch.setattr(owner, name, interrupting(getattr(owner, name), times))
    with pytest.raises(KeyboardInterrupt):
        Snapshot.take([sys.executable, "-c", PROGRAM], tmp_path / "new", env=ENVIRONMENT)
    assert times == []
    assert not (tmp_path / "new").exists()
    no_more_than(before, "the end of the program")


def test_a_program_that_never_waits_is_interrupted(snapshot: Snapshot, tmp_path: Path) -> None:
    """The wait for the program ends."""
    before = State.take()
    timer = threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        Snapshot.take(["sleep", "1000"], tmp_path / "new")
    timer.join()
    assert not (tmp_path / "new").exists()
    no_more_than(before, "the end of the program")


def test_a_command_has_the_signal_mask_of_the_caller(tmp_path: Path) -> None:
    """The thread that starts it blocks signals."""
    code = "from pycriu_native import guest; guest.wait(); print(open('/proc/self/status').read())"
    with (
        Snapshot.take([sys.executable, "-c", code], tmp_path / "new", env=ENVIRONMENT) as taken,
        taken.start(stdout=PIPE, text=True) as process,
    ):
        out, _ = process.communicate(timeout=PATIENCE)
    mask = next(line for line in out.splitlines() if line.startswith("SigBlk:"))
    assert int(mask.split()[1], 16) == 0


@pytest.mark.parametrize("leave_running", [False, True])
@pytest.mark.parametrize("name", ["mapped_files", "_accept_any_file", "dump", "read"])
def test_a_process_that_is_taken(
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
    sleeper: int,
    tmp_path: Path,
    name: str,
    leave_running: bool,
) -> None:
    """Either it runs and there is no directory, or it has ended and the snapshot is complete."""
    pid, directory = sleeper, tmp_path / "new"
    times = [1]
    owner: Any = {"mapped_files": host_check, "read": Record}.get(name, saving)
    monkeypatch.setattr(owner, name, interrupting(getattr(owner, name), times))
    with pytest.raises(KeyboardInterrupt) as raised:
        Snapshot.take(pid, directory, without_guest=True, leave_running=leave_running)
    assert times == []
    kept = not is_alive(pid)
    if name != "_accept_any_file":  # CRIU may have gone on before the interruption
        assert kept is (name in ("dump", "read") and not leave_running)
    assert directory.exists() is kept
    assert ("complete" in str(getattr(raised.value, "__notes__", ""))) is kept
    if kept:
        with Snapshot(directory) as taken:
            kill(taken.start())


@pytest.mark.parametrize("kind", ["new", "empty", "link"])
def test_a_snapshot_that_cannot_be_completed(
    monkeypatch: pytest.MonkeyPatch, sleeper: int, tmp_path: Path, kind: str
) -> None:
    """A full disk after CRIU has written its images: the process continues."""
    place, target = tmp_path / "new", tmp_path / "target"
    if kind != "new":
        target.mkdir()
        place.symlink_to(target) if kind == "link" else target.rename(place)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Record, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        Snapshot.take(sleeper, place, without_guest=True)
    assert is_alive(sleeper)
    assert place.exists() is (kind != "new")
    assert not list(tmp_path.glob("*/*"))


def test_a_directory_that_another_call_removes(
    monkeypatch: pytest.MonkeyPatch, sleeper: int, tmp_path: Path
) -> None:
    """It is refused if it is removed between its creation and its lock."""

    def late(fd: int) -> bool:
        (tmp_path / "new").rmdir()
        return lock(fd)

    monkeypatch.setattr(saving, "lock", late)
    with pytest.raises(OptionError, match="a new or empty directory"):
        Snapshot.take(sleeper, tmp_path / "new", without_guest=True)
    assert is_alive(sleeper)


def test_a_program_whose_output_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No thread can be started for it: the program is killed."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    before = State.take()
    monkeypatch.setattr(parked, "Thread", fail)
    with pytest.raises(RuntimeError):
        Snapshot.take(["sleep", "1000"], tmp_path / "new")
    no_more_than(before, "the end of the program")


TWICE = """
from pycriu_native import guest
guest.wait()
guest.wait()
import signal; signal.pause()
"""


@pytest.mark.parametrize("name", ["mount_proc", "dump", "share_with_parent"])
def test_a_copy_that_is_taken(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """It runs with its own /proc and can be taken again, or its snapshot is complete."""
    directory = tmp_path / "new"
    command = [sys.executable, "-c", TWICE]
    with Snapshot.take(command, tmp_path / "base", env=ENVIRONMENT) as base:
        pipes: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
        process = base.start(**pipes, savable=True)
        times = [1]
        owner: Any = copy_mounts if name == "mount_proc" else saving
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupting(getattr(owner, name), times))
            with pytest.raises(KeyboardInterrupt):
                Snapshot.take(process, directory)
        assert times == []
        if name == "mount_proc":
            assert not directory.exists()
            seen = os.listdir(f"/proc/{process.pid}/root/proc")
            assert {each for each in seen if each.isdigit()} == {"1", str(base.record.pid)}
            Snapshot.take(process, directory)
        process.communicate(timeout=PATIENCE)
        with Snapshot(directory) as taken, taken.start(**pipes) as process:
            process.kill()


@pytest.mark.parametrize("held", ["Popen", "SnapshotProcess"])
def test_a_handler_takes_a_process_whose_lock_its_thread_holds(tmp_path: Path, held: str) -> None:
    """``Popen.wait`` and the methods of a copy hold a lock, also while a handler runs in them."""
    with Snapshot.take([sys.executable, "-c", TWICE], tmp_path / "base", env=ENVIRONMENT) as base:
        place = base.directory
    done = subprocess.run(
        [sys.executable, "-c", HANDLER, held, place, tmp_path / "new"],
        env=ENVIRONMENT,
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "taken -9\n", done.stderr


HANDLER = """
import signal, subprocess, sys
from pycriu_native.snapshots import Snapshot

_, held, source, directory = sys.argv
null = subprocess.DEVNULL
if held == "Popen":
    process = subprocess.Popen(
        ["sleep", "1000"], stdin=null, stdout=null, stderr=null, start_new_session=True
    )
else:
    process = Snapshot(source).start(savable=True, stdin=null, stdout=null, stderr=null)

def take(*_):
    Snapshot.take(process, directory, without_guest=held == "Popen").remove()
    print("taken", end=" ", flush=True)

signal.signal(signal.SIGALRM, take)
if held == "Popen":
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    process.wait()
else:
    with process._lock:
        signal.raise_signal(signal.SIGALRM)
print(process.wait())
"""


SHARING: list[tuple[ModuleType | type, str]] = [
    (template, "write_image"),
    (sharing, "prepare"),
    (forked_workers, "start_fork_server"),
    (shared_template, "load"),
    (snapshot_module, "SharedTemplate"),
]
"""Steps of ``share``."""


@pytest.mark.parametrize(("owner", "name"), SHARING, ids=[name for _, name in SHARING])
def test_sharing(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """No process, descriptor or part of a directory remains."""
    shutil.rmtree(snapshot.directory / sharing.SHARED, ignore_errors=True)
    before = State.take()
    times = [1]
    with monkeypatch.context() as patch:
        if name == "SharedTemplate":
            patch.setattr(owner.SharedTemplate, "__init__", interrupting_init(times))
        else:
            patch.setattr(owner, name, interrupting(getattr(owner, name), times))
        with pytest.raises(KeyboardInterrupt):
            snapshot.share()
    assert times == []
    no_more_than(before, "the end of the template")
    assert not list(snapshot.directory.glob("*.partial"))
    with snapshot.share() as shared:
        kill(snapshot.start(via=shared))


def interrupting_init(times: list[int]) -> Callable[..., None]:
    """The constructor of SharedTemplate; the main thread gets SIGINT at its end."""
    return interrupting(shared_template.SharedTemplate.__init__, times)


ZYGOTES = [
    (zygote, "restore_root", False),
    (zygote, "send_line", False),
    (zygote.ForkRequest, "receive", True),
    (zygote, "send_line", True),
]
"""Steps of ``zygote``, and of the start of its copies."""


@pytest.mark.parametrize(
    ("owner", "name", "starts"), ZYGOTES, ids=[f"{name}-{starts}" for _, name, starts in ZYGOTES]
)
def test_zygotes(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, starts: bool
) -> None:
    """No process and no descriptor remains."""
    times = [1]
    with contextlib.ExitStack() as owned:
        made = owned.enter_context(snapshot.zygote()) if starts else None
        before = State.take()
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupting(getattr(owner, name), times))
            with pytest.raises(KeyboardInterrupt):
                snapshot.zygote() if made is None else made.start()
        assert times == []
        no_more_than(before, "the end of the copy")


def test_random_instants(snapshot: Snapshot, tmp_path: Path) -> None:
    """One or several interruptions of each call, at random instants, leave nothing."""
    rnd = random.Random(os.environ.get("PYTEST_CURRENT_TEST"))
    owned = contextlib.ExitStack()
    made = owned.enter_context(snapshot.zygote())
    kill(made.start())
    kill(snapshot.start(share_memory=True))
    kill(snapshot.start(share_memory=False))
    command = [sys.executable, "-c", PROGRAM]
    calls: dict[str, tuple[float, Callable[[], Any]]] = {
        "start": (0.05, snapshot.start),
        "plain": (0.05, lambda: snapshot.start(stdout=PIPE, share_memory=False)),
        "forked": (0.01, made.start),
        "zygote": (0.2, snapshot.zygote),
        "share": (0.05, snapshot.share),
        "take": (0.4, lambda: Snapshot.take(command, tmp_path / "new", env=ENVIRONMENT)),
    }
    handler = signal.signal(signal.SIGALRM, interrupt_work)
    try:
        before = State.take()
        for name, (seconds, call) in calls.items():
            for _ in range(12):
                result = None
                again = rnd.choice([0, rnd.uniform(0.0005, seconds)])
                try:
                    signal.setitimer(signal.ITIMER_REAL, rnd.uniform(1e-5, seconds), again)
                    result = call()
                except KeyboardInterrupt:
                    pass
                signal.setitimer(signal.ITIMER_REAL, 0)
                if isinstance(result, SnapshotProcess):
                    result.kill()
                    result.communicate(timeout=PATIENCE)
                elif isinstance(result, Snapshot):
                    result.remove()
                elif result is not None:
                    result.close()
                del result
                assert not (tmp_path / "new").exists(), name
                no_more_than(before, f"the end of {name}")
    finally:
        signal.signal(signal.SIGALRM, handler)
        owned.close()


def interrupt_work(_: int, frame: FrameType | None) -> None:
    """Interrupt ``uninterrupted``; after it, a caller can lose the result, as that of Popen."""
    while frame is not None:
        if frame.f_code is uninterrupted.uninterrupted.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back


def test_namespaces_that_were_closed_before() -> None:
    """A thread that begins to wait for them after the end of a short copy waits for nothing."""
    made = namespaces.Namespaces()
    made.close()
    reader, writer = os.pipe()
    try:
        assert not made.wait_for_end(reader)
    finally:
        os.close(reader)
        os.close(writer)
