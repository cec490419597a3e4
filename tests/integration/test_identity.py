"""Identity of the dumped process: never another process than the given one, and the caller only on
request.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuOpts,
    DumpJob,
    ImagesError,
    Notification,
    Notify,
    OptionError,
    Pidfd,
    ProcessIdentity,
    ProcessMismatchError,
    dump,
    dump_many,
    pre_dump,
    preflight,
    restore,
)
from pycriu_native._support.frozen_dataclass import replace

from .conftest import Spawn
from .support.processes import eventually, state

OUTER = """
import subprocess, sys
sys.exit(subprocess.Popen([sys.executable, "-c", *sys.argv[1:]]).wait())
"""

INNER = """
import asyncio, io, json, os, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pycriu_native import *
from pycriu_native import aio; from pycriu_native.archive import streaming
from pycriu_native.snapshots import Snapshot

def opts(pid=None, **more):
    return CriuOpts(images_directory=sys.argv[1], **more)

def pool(pid):
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
        return dump_many([pid], opts, executor=executor)[0].get()

ways = {
    "dump": lambda pid: dump(pid, opts()),
    "leave_running": lambda pid: dump(pid, opts(leave_running=True)),
    "identity": lambda pid: dump(ProcessIdentity.of(pid), opts()),
    "pidfd": lambda pid: dump(Pidfd(os.pidfd_open(pid)), opts()),
    "service": lambda pid: dump(pid, opts(), via=Service("/nowhere")),
    "warm": lambda pid: dump(pid, opts(), via=warm),
    "pre_dump": lambda pid: pre_dump(pid, opts()),
    "aio": lambda pid: asyncio.run(aio.dump(pid, opts())),
    "iters": lambda pid: dump_iters(pid, opts()),
    "stream": lambda pid: streaming.dump_stream(pid, CriuOpts(), io.BytesIO()),
    "migrate": lambda pid: migrate_out(pid, CriuOpts(), to="127.0.0.1:1"),
    "many": lambda pid: dump_many([pid], opts)[0].get(),
    "pool": pool,
    "itself": lambda pid: dump_many([os.getpid()], opts)[0].get(),
    "own pid": lambda pid: dump(os.getpid(), opts()),
    "own pidfd": lambda pid: dump(Pidfd(os.pidfd_open(os.getpid())), opts()),
    "snapshot": lambda pid: Snapshot.take(pid, sys.argv[1], without_guest=True),
    "own snapshot": lambda pid: Snapshot.take(os.getpid(), sys.argv[1], without_guest=True),
}
found = {}
with WorkerPool(1) as warm:
    for name, way in ways.items():
        try:
            way(os.getppid())
            found[name] = "done"
        except OptionError as error:
            found[name] = error.problems[0].field + ": " + error.problems[0].rule
print(json.dumps([found, os.path.exists(sys.argv[1])]))
"""


@pytest.mark.cures("criu-in-tree")
def test_a_tree_that_contains_the_caller(images: Path) -> None:
    """Every call refuses it before anything is touched."""
    ran = subprocess.run(
        [sys.executable, "-c", OUTER, INNER, str(images)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert ran.returncode == 0, ran.stderr
    result, touched = json.loads(ran.stdout)
    assert not touched
    for way, words in result.items():
        assert words.startswith("program: " if "snapshot" in way else "pid: "), (way, words)
        assert "in this tree" in words, (way, words)
        lacking = way in ("pre_dump", "iters", "stream", "migrate", "snapshot", "own snapshot")
        assert ("include_caller" in words) != lacking, (way, words)


def test_the_shell_of_the_command_line(images: Path) -> None:
    """The shell continues, and the message names the option."""
    me = f"{sys.executable} -m pycriu_native"
    script = f"{me} dump $$ -D {images}; echo $?; {me} preflight $$; echo $?"
    ran = subprocess.run(
        ["sh", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert ran.returncode == 0, ran.stderr
    first, *_, last = ran.stdout.split()
    assert (first, last) == ("2", "11")
    assert "--include-caller" in ran.stderr
    assert "--include-caller" in ran.stdout
    assert not images.exists()


def test_preflight_of_a_tree_that_contains_the_caller() -> None:
    """A tree that contains the caller is a finding, and for a dump with include_caller a note."""
    (result,) = [one for one in preflight(1).stops if one.id == "caller-inside"]
    assert result.failure == "criu-in-tree"
    assert result.cure is not None
    assert "outside of the namespace" in result.cure
    stops = [one.id for one in preflight(os.getpid()).stops]
    assert "caller-inside" in stops
    stops = [one.id for one in preflight(os.getpid(), include_caller=True).stops]
    assert "caller-inside" not in stops


def test_the_first_process_of_a_namespace(images: Path) -> None:
    """Every worker would be in its tree, so it can only be dumped from another namespace."""
    for include in (False, True):
        with pytest.raises(OptionError, match="outside of the namespace"):
            dump(1, CriuOpts(images_directory=images), include_caller=include)
    assert not images.exists()


def test_a_pidfd(spawn: Spawn, images: Path) -> None:
    """The process of the pidfd is dumped."""
    target = spawn()
    fd = os.pidfd_open(target.pid)
    try:
        result = dump(Pidfd(fd), CriuOpts(images_directory=images, leave_running=True))
        assert result.pid == target.pid
        assert target.runs_on()
        assert [
            each.get().pid
            for each in dump_many(
                [Pidfd(fd)], lambda pid: CriuOpts(images_directory=images, leave_running=True)
            )
        ] == [target.pid]
    finally:
        os.close(fd)


def test_the_number_of_a_thread(spawn: Spawn, images: Path) -> None:
    """It is refused before anything is touched: CRIU would leave its code in the process."""
    target = spawn("""
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        serve()
    """)
    number = max(map(int, os.listdir(f"/proc/{target.pid}/task")))
    for verb in (dump, pre_dump):
        with pytest.raises(OptionError, match=f"pid={number}: .*: dump pid {target.pid}"):
            verb(number, CriuOpts(images_directory=images))
    assert not images.exists()
    assert target.runs_on()


@pytest.mark.parametrize(
    "other",
    [{"boot_id": "another"}, {"pid_namespace": 1}, {"start_time": 1}, {"start_time": None}],
    ids=lambda other: next(iter(other)),
)
def test_another_process(spawn: Spawn, images: Path, other: dict[str, Any]) -> None:
    """A ProcessIdentity of another host, boot, namespace or a reused pid is refused, and the
    process continues.
    """
    target = spawn()
    meant = replace(ProcessIdentity.of(target.pid), **other)
    with pytest.raises(ProcessMismatchError, match=f"pid {target.pid}"):
        dump(meant, CriuOpts(images_directory=images))
    assert not images.exists()
    job = pickle.loads(pickle.dumps(DumpJob(pid=meant, opts=CriuOpts(images_directory=images))))
    with pytest.raises(ProcessMismatchError):
        job()
    assert not images.exists()
    assert target.runs_on()


def test_a_job_in_another_pid_namespace(spawn: Spawn, tmp_path: Path) -> None:
    """A job refers to one process, not to another one with the same pid in another namespace."""
    target = spawn()
    job = DumpJob(pid=target.pid, opts=CriuOpts(images_directory=tmp_path / "images"))
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    runs = (
        "import pickle, sys; from pycriu_native import ProcessMismatchError\n"
        "try: pickle.load(open(sys.argv[1], 'rb'))()\n"
        "except ProcessMismatchError as error: print(error)"
    )
    ran = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", runs,
         str(tmp_path / "job")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert "another pid namespace" in ran.stdout, ran.stderr
    assert target.runs_on()


def test_the_pid_is_taken_meanwhile(spawn: Spawn, images: Path) -> None:
    """If the pid was reused before the dump, the new process continues, and the dump is undone."""
    target = spawn()
    strangers: list[subprocess.Popen[bytes]] = []

    def take_the_pid(notification: Notification) -> None:
        if notification.action is not Notify.PRE_DUMP:
            return
        os.kill(target.pid, signal.SIGKILL)
        target.reap()
        for _ in range(100):
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(target.pid - 1))
            null = subprocess.DEVNULL
            other = subprocess.Popen(
                ["sleep", "99"], stdin=null, stdout=null, stderr=null, start_new_session=True
            )
            if other.pid == target.pid:
                strangers.append(other)
                return
            other.kill()
            other.wait()
        pytest.skip("the pid could not be had again: other processes start all the time")

    with pytest.raises(ProcessMismatchError, match="another process"):
        dump(target.pid, CriuOpts(images_directory=images), on_notify=take_the_pid)
    (stranger,) = strangers
    assert stranger.poll() is None
    eventually(lambda: state(stranger.pid) == "S", "that it runs on")
    with pytest.raises(ImagesError, match="has no images"):
        restore(CriuOpts(images_directory=images))
    stranger.kill()
    stranger.wait()


class Named(int):
    """A number with another text, as in an enumeration."""

    def __str__(self) -> str:
        return f"process {int(self)}"


def test_a_number_with_another_text(spawn: Spawn, images: Path) -> None:
    """The process is that of the number."""
    target = spawn()
    identity = ProcessIdentity.of(Named(target.pid))
    assert identity == ProcessIdentity.of(target.pid)
    assert identity.start_time is not None
    with pytest.raises(OptionError, match="the caller"):
        dump(Named(os.getpid()), CriuOpts(images_directory=images))
    result = dump(Named(target.pid), CriuOpts(images_directory=images, leave_running=True))
    assert str(result.pid) == str(target.pid)
    with pytest.raises(TypeError):
        ProcessIdentity.of("self")  # type: ignore[arg-type]


HIDING = """
import os
from pycriu_native import ProcessIdentity
from pycriu_native._system import mounts
from pycriu_native._system.new_namespaces import CLONE_NEWNS, unshare
from pycriu_native._system.process import stat_of
from pycriu_native._system.process_tree import is_above

unshare(CLONE_NEWNS)
mounts.make_private()
mounts._mount("proc", "/proc", 0, kind="proc", data="hidepid=1")
os.setgroups([])
os.setgid(65534)  # group 0 sees all
os.setuid(65534)
assert not os.access("/proc/1/stat", os.R_OK)
assert stat_of(1) is None
assert not is_above(1, os.getpid())  # it climbs to processes that are hidden
assert ProcessIdentity.of(1).start_time is None
"""


def test_a_process_that_proc_hides() -> None:
    """The processes of other users are as if they did not exist (``hidepid`` of proc(5))."""
    words = [sys.executable, "-c", HIDING]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
