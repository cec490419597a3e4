"""Pools of workers: they are used if their workers equal new ones, and only then."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import (
    CriuOpts,
    ProgramNotFoundError,
    Worker,
    WorkerPool,
    dump,
    restore,
    restore_child,
    version,
)
from pycriu_native._transport.forkserver import ForkServer, _servers
from pycriu_native._transport.inherited_state import inherited_state
from pycriu_native._transport.program import find_program
from pycriu_native._transport.spawn import SAVING
from pycriu_native._transport.worker import WorkerConnection

from .conftest import Spawn
from .support import cgroups
from .support.hosts import host
from .support.processes import children, eventually, is_alive
from .support.system_calls import NUMBERS

REPO = Path(__file__).parents[2]


def taken(pool: WorkerPool) -> bool:
    """Whether a call would use a worker of the pool; the worker is then ended."""
    assert pool.wait_until_ready(20)
    ready = {worker.pid for worker, _ in pool._stock.idle}
    line = pool.connect(spawn_options=SAVING)
    assert isinstance(line, WorkerConnection)
    try:
        return line.pid in ready
    finally:
        line.wait()


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """A pool that is ready."""
    with WorkerPool(1) as made:
        assert made.wait_until_ready(20)
        yield made


def test_dumps_and_restores(spawn: Spawn, images: Path) -> None:
    """Dump and restore use workers of the pool, each is replaced, and all end with ``close``."""
    target = spawn()
    before = children()
    opts = CriuOpts(images_directory=images)
    with WorkerPool(2) as pool:
        assert pool.wait_until_ready(20)
        first = {worker.pid for worker, _ in pool._stock.idle}
        target.dump(opts, via=pool)
        restored = restore_child(opts, via=pool)
        assert restored.pid == target.pid
        assert target.runs_on()
        assert pool.wait_until_ready(20)
        second = {worker.pid for worker, _ in pool._stock.idle}
        assert len(first & second) == 1  # the dump has taken one, the restore one of its own
    assert children() <= before  # the target and its copy have the same pid
    os.kill(restored.pid, signal.SIGKILL)
    os.waitpid(restored.pid, 0)


def test_a_call_gets_one(pool: WorkerPool) -> None:
    """The worker of the next call existed before it."""
    assert taken(pool)
    assert version(via=pool) == version()


def test_what_goes_past_it(pool: WorkerPool) -> None:
    """Calls that pass descriptors or standard input, and self-dumps, use a new worker."""
    ready = {worker.pid for worker, _ in pool._stock.idle}
    with open(os.devnull) as null:
        outside = replace(SAVING, detached=True)
        for keep, spawn_options in (([null.fileno()], SAVING), ([0], SAVING), ([], outside)):
            line = pool.connect(keep, spawn_options)
            assert isinstance(line, WorkerConnection)
            assert line.pid not in ready
            line.wait()
    assert {worker.pid for worker, _ in pool._stock.idle} == ready


def _in_thread(body: Callable[[], None]) -> None:
    """Call a function on a thread, with whose end its changes are undone."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            body()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _umask() -> Iterator[None]:
    old = os.umask(0o027)
    try:
        yield
    finally:
        os.umask(old)


@contextlib.contextmanager
def _directory() -> Iterator[None]:
    with contextlib.chdir("/proc"):
        yield


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    changed = 4096 if soft != 4096 else 8192
    if hard != resource.RLIM_INFINITY and changed > hard:
        pytest.skip("RLIMIT_CORE cannot be changed here")
    resource.setrlimit(resource.RLIMIT_CORE, (changed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@contextlib.contextmanager
def _oom_score() -> Iterator[None]:
    score = Path("/proc/self/oom_score_adj")
    old = score.read_text()
    score.write_text(str(int(old) + 7))
    try:
        yield
    finally:
        score.write_text(old)


@contextlib.contextmanager
def _processors() -> Iterator[None]:
    old = os.sched_getaffinity(0)
    if len(old) < 2:
        pytest.skip("one processor")
    os.sched_setaffinity(0, {min(old)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, old)


PROCESS_WIDE = {
    "umask": _umask,
    "directory": _directory,
    "rlimit": _limit,
    "oom score": _oom_score,
    "processors": _processors,
}


@pytest.mark.parametrize("what", PROCESS_WIDE)
def test_the_process_has_changed(pool: WorkerPool, what: str) -> None:
    """A worker from before the change is not used during it, but afterwards."""
    with PROCESS_WIDE[what]():
        assert not taken(pool)
    assert taken(pool)


def test_another_cgroup(pool: WorkerPool) -> None:
    """A worker of the old cgroup is not used, since restored processes could remain in it."""
    hierarchy = cgroups.required("freezer")
    with contextlib.contextmanager(cgroups.maker)() as make:
        made = make(hierarchy)
        old = Path(f"{hierarchy.mount}{hierarchy.path_of(os.getpid())}")
        cgroups.enter(made, os.getpid())
        try:
            assert not taken(pool)
        finally:
            cgroups.enter(old, os.getpid())
        assert taken(pool)


def test_another_network(pool: WorkerPool) -> None:
    """A thread in another network namespace gets a worker of that namespace."""
    with host() as other:
        with other.entered():
            assert not taken(pool)
        assert taken(pool)


def test_workers_of_another_namespace(pool: WorkerPool) -> None:
    """After two calls from another namespace the workers are started there; calls from the old one
    use new ones.
    """
    with host() as other, other.entered():
        assert not taken(pool)
        assert not taken(pool)
        assert taken(pool)
        link = os.readlink(f"/proc/{pool._stock.idle[0][0].pid}/ns/net") if pool.idle else None
        assert link in (None, os.readlink("/proc/thread-self/ns/net"))
    assert not taken(pool)


REFUSED = 77
CHANGES = {
    "mount namespace": "os_unshare(0x20000)",
    "user, groups": "os.setgroups([4242])",
    "uid": "os.seteuid(0); os.setresuid(0, 0, 4242)",
    "chroot": "os.chroot('/proc/self/root/.'); os.chroot('/usr')",
    "session": "os.setsid()",
    "nice": "os.nice(3)",
    "no new privileges": "ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)",
    "bounding set": "ctypes.CDLL(None).prctl(24, 25, 0, 0, 0)",
    "pid namespace": "os_unshare(0x20000000)",
    "personality": "ctypes.CDLL(None).personality(0x0040000)",
    "io priority": f"ctypes.CDLL(None).syscall({NUMBERS['ioprio_set']}, 1, 0, (2 << 13) | 6)",
    "memory policy": f"done(not ctypes.CDLL(None).syscall({NUMBERS['set_mempolicy']}, 4, None, 0))",
    "securebits": "ctypes.CDLL(None).prctl(28, 1 << 4, 0, 0, 0)",
    "huge pages": "ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)",
    "session keyring": f"done(ctypes.CDLL(None).syscall({NUMBERS['keyctl']}, 1, None) > 0)",
    "core dump filter": "open('/proc/self/coredump_filter', 'w').write('0x7f')",
    "scheduling": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
}
"""What a process does once and for all; ``os_unshare`` is unshare(2). ``done`` skips the test if a
container's filter of system calls refuses the change."""


@pytest.mark.parametrize("what", CHANGES)
def test_what_cannot_be_taken_back(what: str) -> None:
    """The compared state differs after a change that cannot be undone."""
    code = f"""
        import ctypes, os, sys
        from pycriu_native._transport.inherited_state import inherited_state
        def os_unshare(flags):
            assert not ctypes.CDLL(None).unshare(flags)
        def done(success):
            if not success:
                sys.exit({REFUSED})
        before = inherited_state({{}})
        assert before is not None
        assert inherited_state({{}}) == before
        {CHANGES[what]}
        assert inherited_state({{}}) != before
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, cwd=REPO)
    if done.returncode == REFUSED:
        pytest.skip(f"this machine does not allow to change the {what}")
    assert done.returncode == 0


def test_a_configuration_file(tmp_path: Path) -> None:
    """CRIU reads its configuration at its start, so a new file makes a worker stale."""
    configuration = tmp_path / ".criu" / "default.conf"
    with WorkerPool(1, env={"HOME": str(tmp_path)}) as pool:
        assert taken(pool)
        assert pool.wait_until_ready(20)
        configuration.parent.mkdir()
        configuration.write_text("log-level 4\n")
        assert not taken(pool)


def test_another_program(tmp_path: Path) -> None:
    """After the ``criu`` program was replaced, waiting workers are not used."""
    program = tmp_path / "criu"
    program.write_text(f'#!/bin/sh\nexec {find_program()} "$@"\n')
    program.chmod(0o755)
    with WorkerPool(1, program=program) as pool:
        assert taken(pool)
        assert pool.wait_until_ready(20)
        program.write_text(f'#!/bin/sh\n\nexec {find_program()} "$@"\n')
        assert not taken(pool)
    with pytest.raises(ProgramNotFoundError):
        WorkerPool(program=tmp_path / "none")


def test_a_waiting_worker_that_died(pool: WorkerPool) -> None:
    """Such a worker is not used."""
    pid = pool._stock.idle[0][0].pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(pid), "the worker's end")
    assert version(via=pool) == version()
    assert taken(pool)


def test_more_calls_than_workers(spawn: Spawn, tmp_path: Path) -> None:
    """Threads share the pool; a call without a ready worker starts one, and all dumps
    are complete.
    """
    target = spawn()
    errors: list[BaseException] = []

    with WorkerPool(1) as pool:

        def body(number: int) -> None:
            try:
                for turn in range(3):
                    assert version(via=pool) == known, (number, turn)
            except BaseException as error:
                errors.append(error)

        known = version()
        threads = [threading.Thread(target=body, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        opts = CriuOpts(images_directory=tmp_path / "images", leave_running=True)
        dump(target.pid, opts, via=pool)
    assert not errors
    assert target.runs_on()


def test_a_fork(pool: WorkerPool) -> None:
    """A forked child has a separate pool; the workers end with the parent although the child
    continues.
    """
    ours = pool._stock.idle[0][0].pid
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert pool.idle == 0
            assert version(via=pool).major >= 3
            assert pool.wait_until_ready(20)
            assert ours not in {worker.pid for worker, _ in pool._stock.idle}
            assert version(via=pool).major >= 3
            pool.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert taken(pool)


CREATED_IN_A_FORK = """
import os, signal
new = []
os.register_at_fork(before=lambda: new.append(pycriu_native.WorkerPool(1)))  # runs after the pool's
import pycriu_native
pools = [pycriu_native.WorkerPool(1) for _ in range(4)]
for pool in pools:
    assert pool.wait_until_ready(20)
if not (pid := os.fork()):
    os._exit(0)
os.waitpid(pid, 0)
signal.alarm(60)
for pool in pools + new:
    pycriu_native.version(via=pool)
    pool.close()
"""


def test_a_pool_is_created_during_a_fork() -> None:
    """Pools still work if another one was created between the lock for a fork and its release."""
    # Python 3.12 warns of a fork beside the threads of the pools.
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", CREATED_IN_A_FORK]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def _is_gone(pid: int) -> bool:
    return not is_alive(pid)


HOLDER = """
import os, signal, sys, time
from pycriu_native import WorkerPool
from pycriu_native._transport.forkserver import _servers
pool = WorkerPool(2)
assert pool.wait_until_ready(20)
[server] = _servers
if not os.fork():
    time.sleep(600)  # it holds no socket of the workers
print(server.pid, *[worker.pid for worker, _ in pool._stock.idle], flush=True)
time.sleep(600)
"""


def test_workers_end_with_their_process() -> None:
    """Workers end with their process, also after SIGKILL while a forked child continues."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, cwd=REPO, start_new_session=True
    )
    assert holder.stdout is not None
    try:
        workers = [int(word) for word in holder.stdout.readline().split()]
        assert len(workers) == 3
        assert all(is_alive(pid) for pid in workers)
        holder.kill()
        holder.wait()
        for pid in workers:
            eventually(functools.partial(_is_gone, pid), "the worker's end")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()


def fork_server_of(pool: WorkerPool) -> ForkServer:
    """The process from which its workers are forked."""
    assert pool.idle
    [server] = [each for each in _servers if each._connection.fd >= 0]
    return server


def test_workers_are_forked_from_a_server(pool: WorkerPool) -> None:
    """Workers are children of this process, in separate process groups."""
    server = fork_server_of(pool)
    line = pool._stock.idle[0][0]
    stat = Path(f"/proc/{line.pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[1]) == os.getpid()
    eventually(lambda: os.getpgid(line.pid) == line.pid, "a process group of its own")
    held = Path(f"/proc/{line.pid}/fd")
    number = Path(f"/proc/{line.pid}/cmdline").read_text().split("\0")[2]
    descriptors = {"0", "1", "2", number}
    # It moves them after it has its group.
    eventually(lambda: {fd.name for fd in held.iterdir()} == descriptors, "four descriptors")
    (socket,) = (os.readlink(fd) for fd in held.iterdir() if "socket" in os.readlink(fd))
    assert socket not in [os.readlink(fd) for fd in Path(f"/proc/{server.pid}/fd").iterdir()]


def test_what_criu_runs_is_not_preloaded(spawn: Spawn, tmp_path: Path) -> None:
    """Programs that CRIU starts have the same environment as without a fork server."""
    response = tmp_path / "said"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\nenv >> {response}\n")
    script.chmod(0o755)
    configuration = tmp_path / ".criu" / "default.conf"
    configuration.parent.mkdir()
    configuration.write_text(f"action-script {script}\n")
    target = spawn()
    opts = CriuOpts(images_directory=tmp_path / "images", leave_running=True)
    env = {"HOME": str(tmp_path)}

    def variables(via: Worker | WorkerPool) -> set[str]:
        response.unlink(missing_ok=True)
        dump(target.pid, opts, via=via)
        own = ("CRTOOLS", "_=")  # the pid of CRIU, among others
        return {line for line in response.read_text().splitlines() if not line.startswith(own)}

    with WorkerPool(1, env=env) as pool:
        assert pool.wait_until_ready(20)
        fork_server_of(pool)
        assert variables(pool) == variables(Worker(env=env))
    assert target.runs_on()


def test_a_fork_server_that_died(pool: WorkerPool) -> None:
    """A fork server that was killed is replaced, without an effect on calls."""
    first = fork_server_of(pool).pid
    os.kill(first, signal.SIGKILL)
    for _ in range(4):
        assert version(via=pool) == version()
        assert pool.wait_until_ready(20)
    assert fork_server_of(pool).pid != first


@pytest.mark.parametrize("what", ["preloaded by others", "preloads nothing"])
def test_programs_that_cannot_be_fork_servers(tmp_path: Path, what: str) -> None:
    """Workers of programs without a fork server are started separately, in advance."""
    program, env = find_program(), {}
    if what == "preloads nothing":  # such as a program with file capabilities
        script = tmp_path / "criu"
        script.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {program} "$@"\n')
        script.chmod(0o755)
        program = str(script)
    else:
        env = {"LD_PRELOAD": ""}
    before = children()
    with WorkerPool(1, program=program, env=env) as pool:
        assert taken(pool)
        assert version(via=pool) == version()
        assert pool.wait_until_ready(20)
        assert len(children() - before) == 1
    assert children() <= before


def test_ends_with_its_owner() -> None:
    """A pool that is deleted without ``close`` ends its workers and its thread."""
    before = children()
    threads = threading.active_count()
    pool = WorkerPool(2)
    assert pool.wait_until_ready(20)
    assert len(children() - before) == 3  # with the fork server
    del pool
    gc.collect()
    eventually(lambda: not children() - before, "the workers' end")
    assert threading.active_count() <= threads


def test_closed(pool: WorkerPool) -> None:
    """A closed pool raises an exception, and can be closed again."""
    pool.close()
    pool.close()
    assert repr(pool) == "<WorkerPool: closed>"
    assert not pool.wait_until_ready(0)
    with pytest.raises(ValueError, match="closed"):
        version(via=pool)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, 100000])
def test_its_size(size: int) -> None:
    """The size of a pool is a positive number."""
    with pytest.raises(ValueError, match="size="):
        WorkerPool(size)


def test_idle_workers_cost_nothing(pool: WorkerPool) -> None:
    """Idle workers do not run: they have no context switch for some time."""

    def switches() -> str:
        status = Path(f"/proc/{pool._stock.idle[0][0].pid}/status").read_text()
        return status[status.index("voluntary_ctxt_switches") :]

    def asleep() -> bool:
        before = switches()
        threading.Event().wait(0.3)
        return switches() == before

    eventually(asleep, "rest")


def test_restore_with_the_callers_input(spawn: Spawn, images: Path) -> None:
    """A restore that needs the caller's standard input works with a pool, by a new worker."""
    target = spawn()
    opts = CriuOpts(images_directory=images)
    with WorkerPool(1) as pool:
        target.dump(opts, via=pool)
        assert restore(CriuOpts(images_directory=images, shell_job=True), via=pool).pid
        assert target.runs_on()


def test_the_inherited_state_is_constant() -> None:
    """The compared state does not change without a reason."""
    assert inherited_state({}) is not None
    assert inherited_state({}) == inherited_state({})
    _in_thread(lambda: None)
    assert inherited_state({}) == inherited_state({})
