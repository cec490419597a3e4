"""After CRIU was killed during a dump: the lock is removed, connections and cgroups continue.

The kernel resumes a process whose tracer has ended. The library undoes the rest: it removes the
network lock (CRIU's only), ends the repair mode of connections, and freezes or thaws a cgroup as
before. The exception reports what cannot be undone.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycriu_native import (
    CriuOpts,
    DeadlineError,
    Notification,
    Notify,
    WorkerDiedError,
    WorkerPool,
    dump,
)
from pycriu_native._calls import exchange
from pycriu_native._recovery import recovery as recovery_module
from pycriu_native._recovery import run_id as run_id_module
from pycriu_native._recovery.run_id import run_id

from .conftest import Spawn
from .faults.faults import CODE, code_in
from .support import cgroups, releases
from .support.cgroups import FREEZERS, Make
from .support.hosts import cable, host
from .support.processes import eventually
from .support.streams import Stream, each_lock, locks, needs_both, start_stream
from .support.workers import the_worker


@pytest.fixture
def stream(spawn: Spawn) -> Iterator[Stream]:
    """A connection between two hosts, with data in transit."""
    with host() as home, host() as far, cable(home, far) as (address, _):
        yield start_stream((home, far, address), spawn)


def lose_criu(stream: Stream, opts: CriuOpts, moment: Notify, number: int) -> WorkerDiedError:
    """The error of a dump whose CRIU is killed at this notification."""

    def act(notification: Notification) -> None:
        if notification.action is moment:
            os.kill(the_worker(), number)

    with pytest.raises(WorkerDiedError) as caught:
        dump(stream.server.pid, opts, on_notify=act)
    return caught.value


@needs_both
@each_lock
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_connections_continue(stream: Stream, images: Path, lock: str, number: int) -> None:
    """CRIU is killed after all is saved and locked: no byte of the stream is lost, and no lock
    remains. SO_REUSEADDR, which the repair mode changes, has its old value.
    """
    home = stream.home
    home.run("nft", "add", "table", "inet", "CRIU-00000000-0000-0000-00")
    home.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP")
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock=lock)
    reuse = stream.server.ask("reuse")
    assert reuse
    with home.entered():
        error = lose_criu(stream, opts, Notify.POST_DUMP, number)
    assert error.status == -number
    assert (error.lost_connections, error.left_behind) == ((), ())
    ruleset = home.run("nft", "list", "ruleset")
    assert "c114" not in ruleset
    assert ruleset.count("CRIU-") == ruleset.count("CRIU-00000000-0000-0000-00") == 1
    assert "dport 9" in ruleset
    assert stream.server.ask("reuse") == reuse
    stream.goes_on()


@needs_both
@each_lock
def test_a_namespace_that_is_locked_as_a_whole(stream: Stream, images: Path, lock: str) -> None:
    """CRIU is outside of the namespace with the lock, which is removed after its end."""
    with open(stream.home.path) as namespace:
        inode = os.fstat(namespace.fileno()).st_ino
        external = [f"net[{inode}]:home"]
        opts = CriuOpts(
            images_directory=images, tcp_established=True, network_lock=lock, external=external
        )
        error = lose_criu(stream, opts, Notify.POST_DUMP, signal.SIGKILL)
    assert (error.lost_connections, error.left_behind) == ((), ())
    assert locks(stream.home) == (False, False)
    stream.goes_on()


@needs_both
def test_a_chain_that_was_there_before(stream: Stream, images: Path) -> None:
    """The chain CRIU does not identify its owner: an existing one remains, and the error reports
    it.
    """
    for words in ("-N CRIU", "-A CRIU -j RETURN"):
        stream.home.run("iptables", *words.split())
    with open(stream.home.path) as namespace:
        inode = os.fstat(namespace.fileno()).st_ino
        opts = CriuOpts(
            images_directory=images,
            tcp_established=True,
            network_lock="iptables",
            external=[f"net[{inode}]:home"],
        )
        error = lose_criu(stream, opts, Notify.POST_DUMP, signal.SIGKILL)
    [remaining] = error.left_behind
    assert "chain CRIU" in remaining
    assert "chain CRIU" in error.__notes__[0]
    assert "chain CRIU" in stream.home.run("nft", "list", "ruleset")
    again = pickle.loads(pickle.dumps(error))
    assert (again.left_behind, again.__notes__) == (error.left_behind, error.__notes__)


@needs_both
def test_a_connection_that_is_lost_is_named(stream: Stream, images: Path) -> None:
    """The peer closes while the process is frozen: the error names the connection."""
    releases.required("3.19", "query-ext-files")
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="nftables")

    def act(notification: Notification) -> None:
        if notification.action is Notify.QUERY_EXT_FILES:
            stream.home.run("ss", "-K", "sport = 7000")
        if notification.action is Notify.POST_DUMP:
            os.kill(the_worker(), signal.SIGKILL)

    with stream.home.entered(), pytest.raises(WorkerDiedError) as caught:
        dump(stream.server.pid, opts, on_notify=act)
    [lost] = caught.value.lost_connections
    assert ":7000 - " in lost
    assert lost in caught.value.__notes__[0]
    assert locks(stream.home) == (False, False)
    assert stream.server.runs_on()


@needs_both
def test_a_deadline_while_criu_is_stopped(stream: Stream, images: Path) -> None:
    """CRIU is stopped: at the deadline it is continued, and undoes its work."""
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="nftables")

    def stop(notification: Notification) -> None:
        if notification.action is Notify.QUERY_EXT_FILES:
            os.kill(the_worker(), signal.SIGSTOP)

    with stream.home.entered(), pytest.raises(DeadlineError) as caught:
        dump(stream.server.pid, opts, on_notify=stop, deadline=0.5)
    assert not hasattr(caught.value, "__notes__")
    assert locks(stream.home) == (False, False)
    stream.goes_on()


@needs_both
def test_a_criu_that_stays_frozen(
    make_cgroup: Make, stream: Stream, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRIU is frozen: it is killed after the grace period, and the lock is removed."""
    monkeypatch.setattr(exchange, "GRACE", 0.5)
    cgroup = make_cgroup(cgroups.required(""))
    opts = CriuOpts(images_directory=images, tcp_established=True, network_lock="nftables")

    def freeze(notification: Notification) -> None:
        if notification.action is Notify.POST_DUMP:
            cgroups.enter(cgroup, the_worker())
            (cgroup / "cgroup.freeze").write_text("1")
            eventually(lambda: time.monotonic() > over, "the deadline")

    over = time.monotonic() + 6.5
    with stream.home.entered(), pytest.raises(DeadlineError) as caught:
        dump(stream.server.pid, opts, on_notify=freeze, deadline=6)
    assert "was ended" in caught.value.__notes__[0]
    assert (caught.value.lost_connections, caught.value.left_behind) == ((), ())
    assert locks(stream.home) == (False, False)
    stream.goes_on()


# ---- what stays in the process ----


def test_code_of_criu_that_stays_is_named(spawn: Spawn, images: Path) -> None:
    """CRIU is killed while its parasite is in the process: the mapping remains, and the error has
    its address. The process continues; a later dump that fails in the same way also reports it.
    """
    target = spawn("memory = bytearray(b'x') * (1 << 26)\nserve()")
    over = threading.Event()

    def act() -> None:
        while not over.is_set():
            if (images / "pages-1.img").exists():  # the parasite is sending memory
                os.kill(the_worker(), signal.SIGKILL)
                return

    thread = threading.Thread(target=act)
    thread.start()
    try:
        with pytest.raises(WorkerDiedError) as caught:
            dump(target.pid, CriuOpts(images_directory=images))
    finally:
        over.set()
        thread.join()
    assert target.runs_on()
    assert code_in(target.pid)
    [remaining] = caught.value.left_behind
    assert remaining.startswith(f"{CODE} {target.pid} (memfd:CRIUMFD, ")
    assert remaining in caught.value.__notes__[0]

    def again(notification: Notification) -> None:
        os.kill(the_worker(), signal.SIGKILL)

    with pytest.raises(WorkerDiedError) as caught:
        dump(target.pid, CriuOpts(images_directory=images), on_notify=again)
    assert caught.value.left_behind == (remaining,)
    assert target.runs_on()


# ---- cgroups that CRIU freezes ----


@pytest.mark.parametrize("controller", FREEZERS, ids=["v1", "v2"])
@pytest.mark.parametrize("paused", [True, False], ids=["paused", "running"])
def test_the_freezer_is_as_before(
    make_cgroup: Make, spawn: Spawn, images: Path, controller: str, paused: bool
) -> None:
    """A frozen cgroup, which CRIU thaws for the dump, is frozen again; a running one runs.

    (CRIU's own freezing is too short; the test does it instead.)
    """
    if paused:
        releases.required("3.19", "query-ext-files")
    name, frozen, thawed = FREEZERS[controller]
    cgroup = make_cgroup(cgroups.required(controller))
    target = spawn()
    cgroups.enter(cgroup, target.pid)
    moment = Notify.QUERY_EXT_FILES if paused else Notify.PRE_DUMP

    def act(notification: Notification) -> None:
        if notification.action is moment:
            if not paused:
                (cgroup / name).write_text(frozen)
            os.kill(the_worker(), signal.SIGKILL)

    try:
        if paused:
            (cgroup / name).write_text(frozen)
        with pytest.raises(WorkerDiedError):
            dump(
                target.pid,
                CriuOpts(images_directory=images, freeze_cgroup=cgroup),
                on_notify=act,
            )
        eventually(
            lambda: cgroups.read(cgroup, name) == (frozen if paused else thawed), "the state before"
        )
    finally:
        (cgroup / name).write_text(thawed)
    assert target.runs_on()


# ---- whose lock it is ----


def test_the_run_id(
    spawn: Spawn,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The value from CRIU's memory equals that in its log.

    The second CRIU is another process: the address is known by then, and the value differs. Workers
    of one fork server have it at the same address.
    """
    releases.required("3.19", "a run id that no other run on this machine has")
    target = spawn()
    result: list[str | None] = []

    def look(pid: int) -> str | None:
        result.append(run_id(pid))
        return result[-1]

    monkeypatch.setattr(recovery_module, "run_id", look)
    opts = CriuOpts(images_directory=images, leave_running=True, log_level=4)
    run_id_module._offsets.clear()
    with WorkerPool(2) as warm:
        assert warm.wait_until_ready(20)
        for via in (None, None, warm, warm, None):
            dump(target.pid, opts, via=via)
            assert f"CRIU run id = {result[-1]}\n" in (images / "dump.log").read_text()
    assert len(set(result)) == len(result) == 5
    assert len(run_id_module._offsets) == 1
    assert run_id(target.pid) is None  # not a CRIU
    assert not caplog.records
    monkeypatch.setattr(run_id_module, "_warned", set())
    monkeypatch.setattr(run_id_module, "_text_at", lambda *_: None)
    for _ in range(2):
        dump(target.pid, opts)
    assert result[-2:] == [None, None]
    expected = ["WARNING"] if releases.has("4.1") else []  # before, the table's name has the pid
    assert [record.levelname for record in caplog.records] == expected


LIBRARIES_FIRST = """
import sys
from pycriu_native import CriuOpts, dump
from pycriu_native._recovery import recovery
found, read = [], recovery.run_id
recovery.run_id = lambda pid: found.append(read(pid)) or found[-1]
dump(int(sys.argv[1]), CriuOpts(images_directory=sys.argv[2], leave_running=True, log_level=4))
print(*found)
"""


def test_the_run_id_where_libraries_precede_the_program(spawn: Spawn, images: Path) -> None:
    """The run id is found in the layout of ``vm.legacy_va_layout`` too."""
    releases.required("3.19", "a run id that no other run on this machine has")
    words = [sys.executable, "-c", LIBRARIES_FIRST, str(spawn().pid), str(images)]
    legacy = ["setarch", "--addr-compat-layout", *words]
    result = subprocess.run(legacy, capture_output=True, text=True, check=True).stdout.strip()
    assert f"CRIU run id = {result}\n" in (images / "dump.log").read_text()
