"""The worker: the ``criu swrk`` process that each call starts, watches and reaps.

The tests cover the choice of the program; the errors for a missing program, a file that is no
program, one that ends at once, one that does not work on this kernel, and one that is killed during
a dump; the state that the program inherits: descriptors, environment, signals, group and session;
resources after failures; and concurrent calls of many threads, also in a program that ignores
SIGCHLD or reaps all children itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pycriu_native
from pycriu_native import (
    CriuError,
    CriuOpts,
    NoSuchProcessError,
    Notification,
    Notify,
    PageServer,
    PermissionDeniedError,
    ProgramError,
    ProgramNotFoundError,
    Worker,
    WorkerDiedError,
    check,
    dump,
    version,
)
from pycriu_native._calls.request import Request
from pycriu_native._support.pidfd import reap
from pycriu_native._transport.process import ChildProcess

from .conftest import Spawn
from .support import releases
from .support.leftovers import Snapshot
from .support.processes import PATIENCE, Target, eventually, free_pid


def _program(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def _refused(target: Target, images: Path, program: str | Path, kind: type[CriuError]) -> CriuError:
    """The error of a dump with this program; the process is unchanged."""
    opts = CriuOpts(images_directory=images)
    with pytest.raises(kind) as caught:
        dump(target.pid, opts, via=Worker(program=program))
    assert type(caught.value) is kind
    assert str(program) in str(caught.value)
    assert target.runs_on()
    return caught.value


# ---- which program ----


@pytest.mark.parametrize("program", ["/does/not/exist/criu", "no-such-criu"])
def test_no_program(spawn: Spawn, images: Path, program: str) -> None:
    """A missing program raises FileNotFoundError, with a command that installs one."""
    error = _refused(spawn(), images, program, ProgramNotFoundError)
    assert isinstance(error, FileNotFoundError)
    assert "install" in str(error)


def test_no_executable(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """A file that cannot be executed, and a directory, raise PermissionError."""
    target = spawn()
    plain = _program(tmp_path / "plain", "#!/bin/sh\n", mode=0o644)
    for program in (plain, tmp_path):
        error = _refused(target, images, program, PermissionDeniedError)
        assert isinstance(error, PermissionError)


def test_a_program_that_cannot_be_started(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """A program that the kernel cannot execute raises an OSError with the reason."""
    target = spawn()
    _refused(target, images, _program(tmp_path / "text", "no program"), ProgramError)
    script = _program(tmp_path / "script", "#!/does/not/exist\n")
    error = _refused(target, images, script, ProgramError)
    assert "its interpreter or loader is missing" in str(error)
    assert isinstance(error, OSError)


@pytest.mark.parametrize(
    ("last", "status", "words"),
    [
        ("exit 0", 0, "with exit status 0"),
        ("exit 3", 3, "with exit status 3"),
        ("kill -9 $$", -9, "killed by SIGKILL"),
    ],
)
def test_a_program_that_ends_at_once(
    spawn: Spawn, images: Path, tmp_path: Path, last: str, status: int, words: str
) -> None:
    """The error has its exit status, or the signal that ended it."""
    program = _program(tmp_path / "program", f"#!/bin/sh\n{last}\n")
    error = _refused(spawn(), images, program, WorkerDiedError)
    assert isinstance(error, WorkerDiedError)
    assert isinstance(error, ConnectionError)
    assert error.status == status
    assert words in str(error)
    with pytest.raises(WorkerDiedError, match=words):
        version(via=Worker(program=program))


def test_stderr_of_criu_is_in_the_exception(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """The error lines on a program's standard error are in the exception."""
    text = "#!/bin/sh\necho 'Error (criu/x.c:1): it went wrong' >&2\nexit 1\n"
    error = _refused(spawn(), images, _program(tmp_path / "program", text), WorkerDiedError)
    assert error.lines == ("Error (criu/x.c:1): it went wrong",)
    assert "it went wrong" in str(error)


OLD = Path("/opt/pycriu-native-3.17/bin/criu")
"""A CRIU 3.17 that ``tools/install-criu`` has installed."""


def test_a_program_that_cannot_run_on_this_kernel(spawn: Spawn, images: Path) -> None:
    """A CRIU that is too old for the kernel raises ProgramError with the kernel in its cause."""
    if not OLD.exists():
        pytest.skip(f"no CRIU 3.17 is installed as {OLD}")
    if subprocess.run([OLD, "check"], capture_output=True, check=False).returncode == 0:
        pytest.skip("CRIU 3.17 works on this kernel")
    target = spawn()
    with pytest.raises(ProgramError, match="kernel") as caught:
        dump(target.pid, CriuOpts(images_directory=images), via=Worker(program=OLD))
    assert caught.value.cause is not None
    assert "too old for this kernel" in caught.value.cause
    assert target.runs_on()


# ---- a worker that is killed ----


def _workers() -> list[int]:
    """The child processes that are CRIU."""
    result = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("criu"):
                    result.append(int(pid))
    return result


@pytest.mark.parametrize("moment", [Notify.PRE_DUMP, Notify.QUERY_EXT_FILES, Notify.POST_DUMP])
def test_a_worker_that_is_killed(spawn: Spawn, images: Path, moment: Notify) -> None:
    """SIGKILL during a dump, also while the process is frozen: an error, and the
    process continues.
    """
    target = spawn()
    killed = []

    def kill_at(notification: Notification) -> None:
        if notification.action is moment:
            [worker] = _workers()
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    opts = CriuOpts(images_directory=images)
    with pytest.raises(WorkerDiedError, match="killed by SIGKILL") as caught:
        dump(target.pid, opts, on_notify=kill_at)
    assert caught.value.status == -signal.SIGKILL
    assert caught.value.pid == target.pid
    assert not os.path.exists(f"/proc/{killed[0]}")
    assert target.runs_on()
    target.dump(opts)


# ---- what it gets from us ----

# A shell blocks signals for a moment when it starts a command: "copy" starts none.
SPY = """#!/bin/sh
here={here}
copy() {{ while IFS= read -r line; do printf '%s\\n' "$line"; done <"$1" >"$2"; }}
copy /proc/$$/status $here/status
copy /proc/$$/stat $here/stat
tr '\\0' '\\n' </proc/$$/environ >$here/environ
(ls -l /proc/$$/fd >$here/fds)
echo "$@" >$here/arguments
"""


@dataclass(frozen=True)
class Spied:
    """The state of a worker at its start."""

    here: Path

    def signals(self, name: str) -> set[int]:
        """The signals of a mask in /proc/PID/status."""
        [line] = [x for x in (self.here / "status").read_text().splitlines() if x.startswith(name)]
        mask = int(line.split()[1], 16)
        return {number for number in range(1, 65) if mask >> (number - 1) & 1}

    def group_and_session(self) -> tuple[int, int, int]:
        """Its own number, its process group's and its session's."""
        text = (self.here / "stat").read_text()
        fields = text.rpartition(")")[2].split()
        return int(text.split()[0]), int(fields[2]), int(fields[3])

    def environment(self) -> dict[str, str]:
        """Its environment variables."""
        lines = (self.here / "environ").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def descriptors(self) -> dict[int, str]:
        """Its descriptors, without that of a shell's script."""
        result = re.findall(r" (\d+) -> (.*)", (self.here / "fds").read_text())
        return {int(number): what for number, what in result if what != str(self.here / "spy")}

    def socket(self) -> int:
        """The descriptor for its requests."""
        verb, number = (self.here / "arguments").read_text().split()
        assert verb == "swrk"
        return int(number)


@pytest.fixture
def spy(tmp_path: Path) -> Callable[..., Spied]:
    """Start a worker that only reports its state."""

    def look(opts: CriuOpts | None = None, **worker: Any) -> Spied:
        program = tmp_path / "spy"
        _program(program, SPY.format(here=tmp_path))
        via = Worker(program=program, **worker)
        opts = opts or CriuOpts(images_directory=tmp_path / "images")
        with pytest.raises(WorkerDiedError, match="ended before it responded"):
            dump(free_pid(), opts, via=via)
        return Spied(tmp_path)

    return look


def test_its_descriptors(spy: Callable[..., Spied]) -> None:
    """Standard input, output, error and its socket, but no other descriptor, inheritable or not."""
    with contextlib.ExitStack() as owned:
        for _ in range(5):
            fd = os.open("/dev/null", os.O_RDONLY)
            owned.callback(os.close, fd)
            os.set_inheritable(fd, True)
        spied = spy()
    result = spied.descriptors()
    assert set(result) == {0, 1, 2, spied.socket()}
    assert result[0] == os.readlink("/proc/self/fd/0")
    assert result[1] == result[2] == "/memfd:criu-stderr (deleted)"
    assert result[spied.socket()].startswith("socket:")


def test_descriptors_that_are_kept(spy: Callable[..., Spied], tmp_path: Path) -> None:
    """Descriptors of an option have the same number in the worker, and are unchanged in
    the caller.
    """
    with socket.socket() as connection, open(tmp_path / "input", "w+") as stdin:
        opts = CriuOpts(
            images_directory=tmp_path / "images", page_server=PageServer(fd=connection.fileno())
        )
        spied = spy(opts, stdin=stdin)
        result = spied.descriptors()
        assert set(result) == {0, 1, 2, spied.socket(), connection.fileno()}
        assert result[connection.fileno()] == os.readlink(f"/proc/self/fd/{connection.fileno()}")
        assert result[0] == str(tmp_path / "input")
        assert not os.get_inheritable(connection.fileno())


def test_its_environment(spy: Callable[..., Spied], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed PATH and HOME, and the variables of ``env``; none of the caller's, which could change
    its behaviour.
    """
    monkeypatch.setenv("CRIU_CONFIG_FILE", "/tmp/evil.conf")
    monkeypatch.setenv("LD_PRELOAD", "")
    environment = spy(env={"CRIU_LIBS_DIR": "/plugins"}).environment()
    assert environment.pop("PATH").startswith("/usr/local/sbin:")
    assert environment == {"HOME": "/", "CRIU_LIBS_DIR": "/plugins"}


@contextlib.contextmanager
def _ignoring(*signals: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _blocking(*signals: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_its_signals(spy: Callable[..., Spied]) -> None:
    """Only SIGXFSZ is ignored, not the signals that the caller ignores.

    CRIU does not work with SIGCHLD ignored. A dump's worker blocks termination signals, which could
    kill the process during a dump.
    """
    ignored = (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGUSR1, signal.SIGTSTP)
    with _ignoring(*ignored), _blocking(signal.SIGTERM, signal.SIGALRM, signal.SIGUSR2):
        spied = spy()
    assert spied.signals("SigIgn") == {signal.SIGXFSZ}
    to_end = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
    assert spied.signals("SigBlk") == to_end
    # While it serves pages, SIGTERM cancels a lazy dump.
    lazy = CriuOpts(
        images_directory=spied.here / "images",
        lazy_pages=True,
        page_server=PageServer("127.0.0.1", 27),
    )
    request = Request(verb=pycriu_native.Verb.DUMP, opts=lazy, pid=free_pid(), via=Worker())
    assert not request.spawn_options.block_signals


def test_its_group_and_session(spy: Callable[..., Spied]) -> None:
    """A separate process group, which Ctrl-C does not reach, in the same session."""
    own, group, session = spy().group_and_session()
    assert group == own
    assert session == os.getsid(0) != own


def test_a_dump_while_signals_are_ignored(spawn: Spawn, images: Path) -> None:
    """With SIGCHLD ignored, so that the kernel keeps no zombies, dumps work."""
    target = spawn()
    opts = CriuOpts(images_directory=images, leave_running=True)
    with _ignoring(signal.SIGCHLD), _blocking(signal.SIGTERM, signal.SIGUSR1):
        for _ in range(3):
            dump(target.pid, opts)
        check()
        with pytest.raises(NoSuchProcessError):
            dump(free_pid(), opts)
    assert target.runs_on()


# ---- among other code of our process ----


@contextlib.contextmanager
def _reaping_in_a_handler() -> Iterator[list[int]]:
    """A SIGCHLD handler that reaps all children, as in many programs."""
    reaped: list[int] = []

    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                reaped.append(pid)

    before = signal.signal(signal.SIGCHLD, reap)
    try:
        with _is_reaped_by(reaped):
            yield reaped
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextlib.contextmanager
def _reaping_in_a_thread() -> Iterator[list[int]]:
    """A thread that waits for any child all the time."""
    reaped: list[int] = []
    over = threading.Event()

    def reap() -> None:
        while not over.is_set():
            with contextlib.suppress(ChildProcessError):
                pid = os.waitpid(-1, os.WNOHANG)[0]
                if pid:
                    reaped.append(pid)

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        with _is_reaped_by(reaped):
            yield reaped
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _is_reaped_by(reaped: list[int]) -> Iterator[None]:
    """Another child, which shows that all are reaped: a busy machine can reap no worker so."""
    pid = os.posix_spawnp("true", ["true"], os.environ)
    yield
    eventually(lambda: pid in reaped, "the other child is reaped")


@contextlib.contextmanager
def _reaping_first() -> Iterator[list[int]]:
    """Something that reaps each worker before the call does."""
    reaped: list[int] = []

    def late(pidfd: int) -> int | None:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert ended is not None
        reaped.append(ended.si_pid)
        return reap(pidfd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{ChildProcess.__module__}.reap", late)
        yield reaped


@pytest.mark.parametrize("reaping", [_reaping_in_a_handler, _reaping_in_a_thread, _reaping_first])
def test_another_thread_reaps_the_worker(
    spawn: Spawn,
    images: Path,
    reaping: Callable[[], contextlib.AbstractContextManager[list[int]]],
) -> None:
    """Dumps succeed and failures are reported, although the worker's exit status is
    sometimes lost.
    """
    target = spawn()
    opts = CriuOpts(images_directory=images, leave_running=True)
    with reaping() as reaped:
        for _ in range(20):
            dump(target.pid, opts)
            with pytest.raises(WorkerDiedError, match="ended before it responded") as caught:
                dump(target.pid, opts, via=Worker(program="/bin/false"))
            assert caught.value.status in (1, None)
    assert reaped
    assert target.runs_on()


def test_calls_of_many_threads_run_side_by_side(spawn: Spawn, tmp_path: Path) -> None:
    """Eight threads dump eight processes; all eight dumps are in progress at the same time."""
    targets = [spawn() for _ in range(8)]
    together = threading.Barrier(len(targets))

    def save(number: int) -> Path:
        images = tmp_path / f"images-{number}"

        def meet(notification: Notification) -> None:
            if notification.action is Notify.POST_DUMP:
                together.wait(PATIENCE)  # breaks, and fails the test, unless all arrive

        dump(targets[number].pid, CriuOpts(images_directory=images), on_notify=meet)
        return images

    with ThreadPoolExecutor(len(targets)) as threads:
        saved = list(threads.map(save, range(len(targets))))
    for target, images in zip(targets, saved, strict=True):
        target.reap()
        assert (images / f"core-{target.pid}.img").exists()


def test_errors_of_many_threads_are_their_own(spawn: Spawn, tmp_path: Path) -> None:
    """Concurrent calls have their own results and errors."""
    target = spawn()

    def call(number: int) -> object:
        opts = CriuOpts(images_directory=tmp_path / f"images-{number}", leave_running=True)
        try:
            if number % 3 == 0:
                return dump(target.pid, opts, via=Worker(program="/bin/false"))
            if number % 3 == 1:
                return dump(free_pid(), opts)
            return version().major
        except CriuError as error:
            return type(error)

    with ThreadPoolExecutor(6) as threads:
        result = list(threads.map(call, range(30)))
    assert result == [WorkerDiedError, NoSuchProcessError, version().major] * 10
    assert target.runs_on()


# ---- what it costs ----


def _raise(_: Notification) -> None:
    raise RuntimeError("no")


FAILURES: dict[str, Callable[[int, CriuOpts], object]] = {
    "refused option": lambda pid, opts: dump(pid, CriuOpts()),
    "no program": lambda pid, opts: dump(pid, opts, via=Worker(program="/does/not/exist")),
    "no program, but a file": lambda pid, opts: dump(pid, opts, via=Worker(program="/etc/passwd")),
    "worker that ends": lambda pid, opts: dump(pid, opts, via=Worker(program="/bin/false")),
    "no process": lambda pid, opts: dump(free_pid(), opts),
    "hook that raises": lambda pid, opts: dump(pid, opts, on_notify=_raise),
    "deadline": lambda pid, opts: dump(pid, opts, deadline=0.0),
    "no directory": lambda pid, opts: dump(pid, CriuOpts(images_directory="/proc/nothing")),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_leaves_nothing(spawn: Spawn, images: Path, kind: str) -> None:
    """Ten failures of any kind leave no descriptor, thread or child; the process continues."""
    target = spawn()
    opts = CriuOpts(images_directory=images, leave_running=True)
    before = Snapshot.take()
    for _ in range(10):
        with pytest.raises((CriuError, RuntimeError)):
            FAILURES[kind](target.pid, opts)
    after = Snapshot.take()
    assert after.descriptors == before.descriptors
    assert after.children == before.children
    assert after.threads == before.threads
    assert target.runs_on()


# ---- capabilities ----

CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE = 19, 21, 40

WITHOUT = """
import ctypes, os, sys
if len(sys.argv) == 5:  # again, without what is no longer allowed
    for number in eval(sys.argv[3]):
        assert ctypes.CDLL(None).prctl(24, number, 0, 0, 0) == 0  # PR_CAPBSET_DROP
    os.execv(sys.executable, [*sys.orig_argv, "dropped"])
from pycriu_native import CriuOpts, CriuError, dump, preload
pid, images, uid = int(sys.argv[1]), sys.argv[2], int(sys.argv[4])
preload()
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as after an execve
try:
    dump(pid, CriuOpts(images_directory=images, leave_running=True))
    print("done")
except CriuError as error:
    print(type(error).__name__, isinstance(error, PermissionError), error)
"""


def _without(target: Target, images: Path, drop: tuple[int, ...] = (), uid: int = 0) -> str:
    """The result of a dump in a program without these capabilities, or without root's uid."""
    words = [str(target.pid), str(images), repr(drop), str(uid)]
    command = [sys.executable, "-c", WITHOUT, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert target.runs_on()
    return done.stdout.strip()


def test_missing_capabilities(spawn: Spawn, tmp_path: Path) -> None:
    """Root without the capabilities that CRIU needs: PermissionError, and the process continues."""
    releases.required("3.18", "CRIU checks its own capabilities")
    target = spawn()
    assert _without(target, tmp_path / "with") == "done"
    message = _without(target, tmp_path / "without", (CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE))
    assert message.startswith("PermissionDeniedError True")
    assert "CAP_CHECKPOINT_RESTORE" in message


def test_missing_ptrace(spawn: Spawn, tmp_path: Path) -> None:
    """A caller that cannot trace the process cannot dump it: PermissionError."""
    target = spawn()
    message = _without(target, tmp_path / "without", (CAP_SYS_PTRACE,))
    assert message.startswith("PermissionDeniedError True"), message


def test_another_user(spawn: Spawn) -> None:
    """A user without capabilities is refused in the same way."""
    releases.required("3.18", "CRIU checks its own capabilities")
    package = Path(pycriu_native.__file__)
    if not all(parent.stat().st_mode & 0o001 for parent in package.parents):
        pytest.skip("the checkout is closed to other users")
    target = spawn()
    with tempfile.TemporaryDirectory() as directory:  # pytest's are private
        os.chmod(directory, 0o755)
        images = Path(directory, "images")
        images.mkdir()
        os.chown(images, 65534, 65534)
        message = _without(target, images, uid=65534)
        assert message.startswith("PermissionDeniedError True"), message
        assert not list(images.glob("core-*.img"))


NOTHING_TO_LOAD = """
import sys
from pycriu_native import CriuError, CriuOpts, dump
if len(sys.argv) > 2:
    from pycriu_native import preload
    preload()
# As for a program that has changed its root, or become a user who cannot read the modules.
for name in ("re", "pycriu_native._failures.explain"):
    sys.modules.setdefault(name, None)
try:
    dump(2**22 - 1, CriuOpts(images_directory=sys.argv[1]))
except CriuError as error:
    print(type(error).__name__, error)
"""


LOADED = """
import sys
from pycriu_native import CriuOpts, dump
def loaded():
    return {"signal", "socket"} & sys.modules.keys()
opts = CriuOpts(images_directory=sys.argv[2], leave_running=True)
at_notifications = []
for hook in (None, lambda notification: at_notifications.append(len(loaded()))):
    dump(int(sys.argv[1]), opts, on_notify=hook)
    print(len(loaded()), *set(at_notifications))
"""


def test_what_a_hook_could_prevent_from_being_loaded(spawn: Spawn, images: Path) -> None:
    """Modules for the recovery of a dump are loaded before a hook, which may change the root."""
    command = [sys.executable, "-c", LOADED, str(spawn().pid), str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n2 2\n"


@pytest.mark.parametrize("loaded", [True, False])
def test_where_nothing_can_be_loaded(images: Path, loaded: bool) -> None:
    """A failure is CRIU's and not a failed import, and it has its cause if preload was called."""
    words = [str(images), *(["loaded"] if loaded else [])]
    command = [sys.executable, "-c", NOTHING_TO_LOAD, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if loaded:
        assert done.stdout.startswith("NoSuchProcessError dump of pid ")
    else:
        assert done.stdout.startswith(("CriuError dump", "NoSuchProcessError dump")), done.stdout
        assert "see pycriu_native.preload" in done.stdout
