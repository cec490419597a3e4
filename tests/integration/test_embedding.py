"""The library in other programs: forks, threads, unusual signals, closed descriptors, exits.

Examples are a server that forks workers, an init that reaps every child, and a daemon without its
first three descriptors. Each test is a short program in a separate process, with a target that must
remain intact.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Spawn
from .support.ported import environment
from .support.processes import PATIENCE, eventually, is_alive, state

Embed = Callable[..., "subprocess.Popen[bytes]"]

START = """\
import json, os, sys, threading
from pathlib import Path
import pycriu_native
from pycriu_native import CriuError, CriuOpts, NoSuchProcessError, check, dump, restore, version

HERE = Path(sys.argv[1])

def tell(*values):
    partial = HERE / "output.partial"
    partial.write_text(json.dumps(values))
    partial.rename(HERE / "output")

def descriptors():
    return sorted(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}" for fd in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{fd}"))

def round_trip(pid, images):
    '''A refused call, a dump that leaves running, and a whole version: all that a call can be.'''
    opts = CriuOpts(images_directory=images, leave_running=True)
    try:
        dump(int(Path("/proc/sys/kernel/pid_max").read_text()) - 1, opts)
        raise AssertionError("a dump of a pid that does not exist")
    except NoSuchProcessError:
        pass
    check()
    return dump(pid, opts).pid == pid and version().major >= 3
"""


def start(here: Path, program: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start an embedding program, which begins with START and can call ``tell``."""
    with open(here / "stderr", "wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", START + textwrap.dedent(program), here, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd="/",
            env=environment(),
        )


@pytest.fixture
def embed(tmp_path: Path) -> Iterator[Embed]:
    """Start embedding programs in the test's directory; all of them are ended after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def embed_one(program: str, *arguments: object) -> subprocess.Popen[bytes]:
        started.append(start(tmp_path, program, *arguments))
        return started[-1]

    yield embed_one
    for process in started:
        process.kill()
        process.wait()


def output_of(here: Path, process: subprocess.Popen[bytes]) -> Any:
    """The values that an embedding program printed, after its successful end."""
    status = process.wait(3 * PATIENCE)
    errors = (here / "stderr").read_text()
    assert status == 0, errors
    assert not errors
    return json.loads((here / "output").read_text())


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_multiprocessing(spawn: Spawn, embed: Embed, tmp_path: Path, method: str) -> None:
    """A worker of a process pool dumps with pickled options, and its result is pickled.

    The parent has made calls before the fork.
    """
    target = spawn()
    program = """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        version()
        opts = CriuOpts(images_directory=HERE / "images", leave_running=True, ghost_limit=4096)
        context = multiprocessing.get_context(sys.argv[3])
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            result = pool.submit(dump, int(sys.argv[2]), opts).result()
            try:
                pool.submit(restore, opts.only_for("restore")).result()
            except FileExistsError as error:
                refused = error
        tell(result.pid, result.images, refused.code, refused.verb, refused.errno)
        """
    process = embed(program, target.pid, method)
    images = str(tmp_path / "images")
    assert output_of(tmp_path, process) == [target.pid, images, -52, "restore", 17]
    assert target.runs_on()


def test_after_a_fork(spawn: Spawn, embed: Embed, tmp_path: Path) -> None:
    """Parent and child both make calls after ``os.fork``."""
    target = spawn()
    program = """
        assert round_trip(int(sys.argv[2]), HERE / "before")
        child = os.fork()
        if child == 0:
            os._exit(0 if round_trip(int(sys.argv[2]), HERE / "child") else 1)
        ended = os.waitpid(child, 0)[1]
        tell(ended, round_trip(int(sys.argv[2]), HERE / "after"))
        """
    assert output_of(tmp_path, embed(program, target.pid)) == [0, True]
    assert target.runs_on()


def test_a_fork_in_mid_call(spawn: Spawn, embed: Embed, tmp_path: Path) -> None:
    """A child that is forked during a call inherits its descriptors; the call ends nevertheless."""
    target = spawn()
    program = """
        import signal, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is the point
        me, children = os.getpid(), []

        def hook(notification):
            child = os.fork()
            if child == 0:
                while os.getppid() == me: time.sleep(0.05)
                os._exit(0)
            children.append(child)

        opts = CriuOpts(images_directory=HERE / "images", leave_running=True)
        result = dump(int(sys.argv[2]), opts, on_notify=hook)
        values = [result.pid, len(children) > 1]
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        tell(*values)
        """
    assert output_of(tmp_path, embed(program, target.pid)) == [target.pid, True]
    assert target.runs_on()


CONNECTED = """
    import os, socket
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    serve(blocks=lambda: [os.get_blocking(each.fileno()) for each in (server, client, accepted)])
"""


def test_a_default_timeout_of_sockets(spawn: Spawn, embed: Embed, tmp_path: Path) -> None:
    """Calls work, and do not change whether the sockets of the dumped process block."""
    target = spawn(CONNECTED)
    program = """
        import socket
        from pycriu_native import DeadlineError, Notify, WorkerPool, preflight
        socket.setdefaulttimeout(120)
        pid, images = int(sys.argv[2]), HERE / "images"
        opts = CriuOpts(images_directory=images, tcp_established=True, leave_running=True)
        preflight(pid, opts)
        dump(pid, opts)
        with WorkerPool(1) as pool:
            dump(pid, opts, via=pool)

        def late(notification):
            if notification.action is Notify.POST_DUMP:
                raise TimeoutError

        try:
            dump(pid, opts, on_notify=late)
        except TimeoutError:
            tell("undone")
        """
    assert output_of(tmp_path, embed(program, target.pid)) == ["undone"]
    assert target.ask("blocks") == [True, True, True]


def test_threads(spawn: Spawn, embed: Embed, tmp_path: Path) -> None:
    """Calls run concurrently on threads other than the main one, each with its own hook."""
    targets = [spawn() for _ in range(3)]
    program = """
        from concurrent.futures import ThreadPoolExecutor

        def one(pid):
            received = []
            opts = CriuOpts(images_directory=HERE / f"images-{pid}", leave_running=True)
            result = dump(pid, opts, on_notify=lambda n: received.append(threading.get_ident()))
            return result.pid == pid and {threading.get_ident()} == set(received)

        def small(_):
            return version().major >= 3

        before = descriptors(), threading.active_count()
        with ThreadPoolExecutor(12) as pool:
            pids = [int(word) for word in sys.argv[2:]]
            answers = [*pool.map(one, pids), *pool.map(small, range(24))]
        tell(len(answers), all(answers), before == (descriptors(), threading.active_count()))
        """
    process = embed(program, *(target.pid for target in targets))
    assert output_of(tmp_path, process) == [27, True, True]
    assert all(target.runs_on() for target in targets)


REAPERS = {
    "a handler": """
        def reap(*_):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]: pass
            except ChildProcessError:
                pass
        signal.signal(signal.SIGCHLD, reap)
        """,
    "a thread": """
        def reap():
            while True:
                try:
                    os.waitpid(-1, 0)
                except ChildProcessError:
                    time.sleep(0.0005)
        threading.Thread(target=reap, daemon=True).start()
        """,
    "ignored": """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        """,
}


@pytest.mark.parametrize("reaper", REAPERS)
def test_an_embedder_that_reaps_all(
    spawn: Spawn, embed: Embed, tmp_path: Path, reaper: str
) -> None:
    """Another part of the program has reaped the worker; the results of calls are the same."""
    target = spawn()
    program = (
        "import signal, time"
        + textwrap.dedent(REAPERS[reaper])
        + textwrap.dedent("""
        from pycriu_native import Worker, WorkerDiedError, restore_child
        pid = int(sys.argv[2])
        good = all(round_trip(pid, HERE / "images") for _ in range(5))
        try:
            check(via=Worker(program="/bin/true"))
        except WorkerDiedError as error:
            died = error.status in (None, 0)
        try:
            restore(CriuOpts(images_directory=HERE / "images"))
        except FileExistsError:
            taken = True
        tell(good, died, taken)
        """)
    )
    assert output_of(tmp_path, embed(program, target.pid)) == [True, True, True]
    assert target.runs_on()


def test_restored_children_of_an_embedder_that_reaps_all(
    spawn: Spawn, embed: Embed, tmp_path: Path
) -> None:
    """restore_child works; another part of the program reads the exit status, so ``wait`` returns
    None.
    """
    target = spawn()
    program = (
        "import signal, time"
        + textwrap.dedent(REAPERS["ignored"])
        + textwrap.dedent("""
        from pycriu_native import restore_child
        pid = int(sys.argv[2])
        opts = CriuOpts(images_directory=HERE / "images")
        dump(pid, opts)
        (HERE / "dumped").touch()
        while not (HERE / "reaped").exists(): time.sleep(0.002)
        restored = restore_child(opts)
        os.kill(restored.pid, signal.SIGKILL)
        tell(restored.pid, restored.wait(20))
        """)
    )
    process = embed(program, target.pid)
    try:
        eventually((tmp_path / "dumped").exists, "the dump")
        target.reap()
    finally:
        (tmp_path / "reaped").touch()
    assert output_of(tmp_path, process) == [target.pid, None]


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 1, 2), (2,)], ids=str)
def test_closed_standard_descriptors(
    spawn: Spawn, embed: Embed, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    """If 0 to 2 are closed, descriptors of a call get these numbers without any mix-up.

    The standard input of the worker is /dev/null, never a file of the call.
    """
    target = spawn()
    program = """
        def look(notification):
            tasks = Path("/proc/self/task").iterdir()
            [worker] = [int(p) for t in tasks for p in (t / "children").read_text().split()]
            inputs.add(os.readlink(f"/proc/{worker}/fd/0"))

        inputs = set()
        for fd in json.loads(sys.argv[3]): os.close(fd)
        before = descriptors()
        good = round_trip(int(sys.argv[2]), HERE / "images")
        opts = CriuOpts(images_directory=HERE / "images", leave_running=True)
        dump(int(sys.argv[2]), opts, on_notify=look)
        tell(good, before == descriptors(), sorted(inputs))
        """
    process = embed(program, target.pid, json.dumps(closed))
    assert output_of(tmp_path, process) == [True, True, ["/dev/null"]]
    assert target.runs_on()


def test_few_descriptors(spawn: Spawn, embed: Embed, tmp_path: Path) -> None:
    """With any limit a call works, or fails with an OSError and closes its descriptors.

    The limit is that of the program: CRIU gets the hard limit, so it can save a process with more
    open files.
    """
    target = spawn("files = [open('/dev/null') for _ in range(100)]\nserve()")
    program = """
        import resource
        pid, hard = int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        opts = CriuOpts(images_directory=HERE / "images", leave_running=True)
        dump(pid, opts)  # what is asked once was asked
        before = descriptors(), threading.active_count()
        outcomes = []
        for limit in range(3, 30):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                dump(pid, opts)
                outcomes.append("done")
            except OSError as error:
                outcomes.append(os.strerror(error.errno))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            assert before == (descriptors(), threading.active_count()), limit
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "SR"
        tell(*outcomes)
        """
    outcomes = output_of(tmp_path, embed(program, target.pid))
    assert set(outcomes) == {"Too many open files", "done"}
    assert outcomes == sorted(outcomes), "with more it is worse"
    assert target.runs_on()


# ---- subinterpreters ----


def test_a_subinterpreter(spawn: Spawn, embed: Embed, tmp_path: Path) -> None:
    """A subinterpreter that shares the lock of the main interpreter (as in web servers) works."""
    target = spawn()
    program = """
        import _xxsubinterpreters as interpreters

        shared = dict(pid=int(sys.argv[2]), here=str(HERE), path=json.dumps(sys.path))
        for number in range(2):
            other = interpreters.create(isolated=False)
            interpreters.run_string(other, '''if True:
                import json, sys
                sys.path[:] = json.loads(path)
                from pycriu_native import CriuOpts, NoSuchProcessError, dump, version
                received = []
                opts = CriuOpts(images_directory=here + "/images", leave_running=True)
                result = dump(pid, opts, on_notify=received.append)
                assert result.pid == pid and received and version().major >= 3
                try:
                    dump(2**22 - 1, opts)
                except NoSuchProcessError:
                    open(here + "/refused", "a").write("x")
            ''', shared)
            interpreters.destroy(other)
        tell((HERE / "refused").read_text(), round_trip(int(sys.argv[2]), HERE / "main"))
        """
    pytest.importorskip("_xxsubinterpreters")
    assert output_of(tmp_path, embed(program, target.pid)) == ["xx", True]
    assert target.runs_on()


def test_an_isolated_subinterpreter(embed: Embed, tmp_path: Path) -> None:
    """An isolated subinterpreter is refused: on import (Python 3.12), or in the first call."""
    program = """
        import _xxsubinterpreters as interpreters

        other = interpreters.create(isolated=True)
        interpreters.run_string(other, '''if True:
            import json, sys
            sys.path[:] = json.loads(path)
            try:
                import pycriu_native
                pycriu_native.version()
            except (ImportError, RuntimeError) as error:
                open(here + "/refused", "w").write(str(error))
        ''', dict(here=str(HERE), path=json.dumps(sys.path)))
        interpreters.destroy(other)
        before = descriptors()
        tell((HERE / "refused").read_text())
        """
    pytest.importorskip("_xxsubinterpreters")
    [refused] = output_of(tmp_path, embed(program))
    assert "isolated subinterpreter" in refused


# ---- the end of the embedder in mid-call ----

HELD = """
    import time

    def hold(notification):
        if notification.action == sys.argv[3]:
            (HERE / "held").touch()
            while not (HERE / "go").exists(): time.sleep(0.002)

    opts = CriuOpts(images_directory=HERE / "images", leave_running=sys.argv[4] == "True")
    call = threading.Thread(
        target=lambda: tell(dump(int(sys.argv[2]), opts, on_notify=hold).pid),
        daemon=sys.argv[5] == "daemon",
    )
    call.start()
    while not (HERE / "held").exists(): time.sleep(0.002)
    """


@pytest.mark.parametrize("leave_running", [True, False])
def test_exit_during_a_call(
    spawn: Spawn, embed: Embed, tmp_path: Path, leave_running: bool
) -> None:
    """At exit the interpreter waits for a call on a non-daemon thread, and the call is
    completed.
    """
    target = spawn()
    process = embed(HELD, target.pid, "post-dump", leave_running, "thread")
    try:
        eventually((tmp_path / "held").exists, "the hook")
        assert state(target.pid) == "t"
        assert process.poll() is None
    finally:
        (tmp_path / "go").touch()
    assert output_of(tmp_path, process) == [target.pid]
    assert (tmp_path / "images" / "inventory.img").exists()
    if leave_running:
        assert target.runs_on()
    else:
        target.reap()


@pytest.mark.parametrize("action", ["pre-dump", "post-dump"])
@pytest.mark.parametrize("how", ["exit", "SIGKILL"])
def test_an_end_that_does_not_wait(
    spawn: Spawn, embed: Embed, tmp_path: Path, action: str, how: str
) -> None:
    """With a daemon thread, or after SIGKILL, the program ends at once: CRIU undoes the dump, and
    the process continues.
    """
    target = spawn()
    process = embed(HELD, target.pid, action, False, "daemon")
    eventually((tmp_path / "held").exists, "the hook")
    if how == "SIGKILL":
        process.send_signal(signal.SIGKILL)
    status = process.wait(PATIENCE)
    assert status == (-signal.SIGKILL if how == "SIGKILL" else 0), (tmp_path / "stderr").read_text()
    assert not (tmp_path / "stderr").read_text()
    eventually(lambda: state(target.pid) in "RS", "the undoing")
    assert target.runs_on()
    assert is_alive(target.pid)
