"""Zygotes: a restored copy that forks a copy of itself for each start."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from pycriu_native import CriuError, DeadlineError, OptionError, WorkerPool
from pycriu_native.snapshots import Snapshot, SnapshotProcess, Zygote
from pycriu_native.snapshots.restore import RestoredChild

from .support import cgroups
from .support.processes import PATIENCE, children, children_of, eventually, state
from .test_snapshots import (
    COMMAND,
    ENVIRONMENT,
    SHELL,
    ask,
    check_descriptors,
    check_files,
    check_random_numbers,
    check_socket,
    identity,
    kill_all,
    output_of_fork,
)
from .test_snapshots_kills import settled


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A snapshot of guest_server.py."""
    directory = tmp_path_factory.mktemp("snapshots") / "server"
    return Snapshot.take([*COMMAND, "saved"], directory, env=ENVIRONMENT)


@pytest.fixture
def zygote(snapshot: Snapshot) -> Iterator[Zygote]:
    """A zygote of the snapshot."""
    with snapshot.zygote() as result:
        yield result


def started(zygote: Zygote, *args: str, **options: Any) -> SnapshotProcess[str]:
    """A copy with text pipes for input and output."""
    return zygote.start(args or None, stdin=PIPE, stdout=PIPE, text=True, **options)


# ---- what a copy is ----


def test_a_copy_receives_its_arguments(zygote: Zygote, tmp_path: Path) -> None:
    """A copy has its arguments, environment, directory and number, and is a child of the caller."""
    with started(zygote, "a", "b c", env={"SNAPSHOT_TEST": "given"}, cwd=tmp_path) as process:
        number, seen = ask(process, "identity")
        assert number == process.number
        assert seen["arguments"] == ["a", "b c"]
        assert (seen["variable"], seen["directory"]) == ("given", str(tmp_path))
        assert process.pid in children()
        assert isinstance(process, subprocess.Popen)
    assert process.returncode == 0
    with started(zygote, extra_env={"OTHER": "x" * 1_000_000}) as process:
        seen = identity(process)
        assert (seen["arguments"], seen["variable"]) == (["saved"], "saved")
        assert seen["directory"] == os.getcwd()


def test_many_at_once(zygote: Zygote) -> None:
    """Copies started by threads have different numbers, pids, sessions and random numbers."""
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        copies = list(pool.map(lambda _: started(zygote), range(12)))
    try:
        seen = [identity(copy) for copy in copies]
        pids = [each["pid"] for each in seen]
        assert len(set(pids)) == len(copies)
        assert seen[0]["processes"] == sorted([1, *pids, zygote._record.pid])
        assert len({copy.number for copy in copies}) == len(copies)
        assert len({os.getsid(copy.pid) for copy in copies}) == len(copies)
        check_random_numbers(copies)
    finally:
        kill_all(copies)


def test_descriptors(zygote: Zygote) -> None:
    """A copy gets those of pass_fds; its zygote does not keep them."""
    before = set(map(int, os.listdir(f"/proc/{zygote.pid}/fd")))
    check_descriptors(lambda **options: started(zygote, **options))
    assert set(map(int, os.listdir(f"/proc/{zygote.pid}/fd"))) == before


def test_exit_statuses(zygote: Zygote) -> None:
    """Exit statuses of exits, signals and handlers are right, also with os.waitpid."""
    for question, status in ((["exit", 42], 42), (["kill", signal.SIGTERM], -signal.SIGTERM)):
        with started(zygote) as process:
            out, _ = process.communicate(json.dumps(question) + "\n", timeout=PATIENCE)
        assert (out, process.returncode) == ("", status)
    with started(zygote) as process:
        identity(process)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(PATIENCE) == 31
    with started(zygote) as process:
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM
    process = zygote.start(stdin=DEVNULL)
    assert os.waitpid(process.pid, 0) == (process.pid, 0)
    assert process.wait() == 0


def test_a_second_wait_ends_a_copy(zygote: Zygote) -> None:
    """A copy that calls ``wait`` again ends, as other copies do."""
    with started(zygote, stderr=PIPE) as process:
        out, errors = process.communicate(json.dumps(["wait"]) + "\n", timeout=PATIENCE)
    assert (out, process.returncode) == ("", 1)
    assert "given up" in errors


def test_streams(zygote: Zygote, tmp_path: Path) -> None:
    """Streams can be files, the other output, or a socket."""
    check_files(zygote, tmp_path)
    check_socket(zygote)
    with pytest.raises(OptionError, match="a sequence of str") as caught:
        zygote.start("text", stdin=-7, cwd="relative")
    assert len(caught.value.problems) == 3


PROGRAM = """
import os, sys
from pycriu_native import guest
kept = os.dup(1)
os.register_at_fork(after_in_child=lambda: os.environ.update(FORKED="child"))
guest.after_start(lambda start: os.environ.update(STARTED=str(start.number)))
guest.wait()
os.write(kept, f"{os.environ.get('FORKED')} {os.environ['STARTED']}\\n".encode())
"""


def test_state_of_the_program(tmp_path: Path) -> None:
    """Duplicates of a stream are replaced; the functions for forks and starts are called."""
    command = [sys.executable, "-c", PROGRAM]
    snapshot = Snapshot.take(command, tmp_path / "snapshot", env=ENVIRONMENT)
    with snapshot.zygote() as zygote:
        for number in (1, 2):
            with zygote.start(stdout=PIPE, text=True) as process:
                assert process.communicate(timeout=PATIENCE)[0] == f"child {number}\n"
            assert process.returncode == 0


def test_where_it_runs(snapshot: Snapshot) -> None:
    """Host name, network and worker are those of the zygote."""
    with (
        WorkerPool(1) as pool,
        snapshot.zygote(hostname="z", network=True, via=pool) as zygote,
        started(zygote) as process,
    ):
        seen = identity(process)
        assert (seen["hostname"], seen["links"]) == ("z", ["lo"])
    with (
        snapshot.share() as template,
        snapshot.zygote(via=template) as zygote,
        started(zygote) as process,
    ):
        identity(process)
    with pytest.raises(OptionError, match="hostname"):
        snapshot.zygote(hostname="")


def test_asyncio(zygote: Zygote) -> None:
    """start_async has the same result as that of a snapshot."""

    async def run() -> None:
        async with zygote.start_async(stdin=PIPE, stdout=PIPE) as process:
            out, _ = await process.communicate(b'["exit", 4]\n')
        assert (out, process.returncode) == (b"", 4)

    asyncio.run(run())
    with pytest.raises(OptionError, match="binary"):
        zygote.start_async(text=True)


# ---- its end ----


def test_close(snapshot: Snapshot) -> None:
    """``close`` ends all copies, with the exit status of a signal; nothing remains."""
    before = children()
    zygote = snapshot.zygote()
    copies = [zygote.start(stdin=PIPE) for _ in range(3)]
    zygote.close()
    zygote.close()
    assert [copy.wait(PATIENCE) for copy in copies] == [-signal.SIGKILL] * 3
    for copy in copies:
        copy.communicate()
    with pytest.raises(CriuError, match="is closed"):
        zygote.start()
    assert children() <= before


def test_a_copy_keeps_it(snapshot: Snapshot) -> None:
    """A zygote is not deleted while a copy is in use."""
    before = children()
    with started(snapshot.zygote()) as process:
        identity(process)
    assert process.returncode == 0
    del process
    eventually(lambda: children() <= before, "its end")


FORKED = """
import os, sys
from subprocess import PIPE
from pycriu_native import CriuError
from pycriu_native.snapshots import Snapshot
with Snapshot(sys.argv[1]).zygote() as zygote:
    copies = [zygote.start(stdin=PIPE, stdout=PIPE)]
    child = os.fork()
    if child == 0:
        try:
            zygote.start()
        except CriuError as error:
            assert "belongs to the parent" in str(error)
            zygote.close()
            sys.exit(0)  # with the functions for the end of the interpreter
        sys.exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    copies.append(zygote.start(stdin=PIPE, stdout=PIPE))
    for copy in copies:
        assert copy.communicate(b'["exit", 5]\\n')[0] == b""
        print(copy.returncode)
"""


def test_a_forked_child_of_the_caller(snapshot: Snapshot) -> None:
    """A child that the caller forks cannot use the zygote, and its end does not end it."""
    assert output_of_fork(FORKED, snapshot) == ("5\n5\n", "")


def test_a_zygote_that_was_killed(zygote: Zygote) -> None:
    """The copies of a killed zygote end, and a start reports it."""
    with started(zygote) as process:
        identity(process)
        os.kill(zygote.pid, signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    with pytest.raises(CriuError, match="ended with status -9"):
        zygote.start()


def test_a_zygote_that_is_late(snapshot: Snapshot, capfd: pytest.CaptureFixture[str]) -> None:
    """If a zygote is late, the deadline applies; the copy that is forked later ends, without a
    message, and the next start reaps it.
    """
    before = children()
    with snapshot.zygote(deadline=PATIENCE) as zygote:
        os.kill(zygote.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineError):
            zygote.start(deadline=0.1)
        os.kill(zygote.pid, signal.SIGCONT)
        with started(zygote) as process:
            identity(process)
            assert isinstance(zygote._child, RestoredChild)
            ours = {process.pid, zygote.pid, zygote._child._namespaces.pid}
            assert children() - before == ours
        os.kill(zygote.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineError):
            zygote.start(deadline=0.1)
        os.kill(zygote.pid, signal.SIGCONT)
        eventually(
            lambda: [state(pid) for pid in children() - before - ours] == ["Z"], "the end of it"
        )
    assert children() <= before
    assert capfd.readouterr().err == ""


def test_a_zygote_that_cannot_fork(snapshot: Snapshot) -> None:
    """The error has the reason, and the zygote continues."""
    hierarchy = cgroups.required("pids")
    for make in cgroups.maker():
        cgroup = make(hierarchy)
        with snapshot.zygote(cgroup=cgroup) as zygote:
            (cgroup / "pids.max").write_text("1")
            with pytest.raises(CriuError, match="cannot be forked: Resource temporarily"):
                zygote.start()
            (cgroup / "pids.max").write_text("max")
            with started(zygote) as process:
                assert "pids:" in identity(process)["cgroup"]


OWNER = """
import sys
from subprocess import PIPE
from pycriu_native.snapshots import Snapshot
zygote = Snapshot(sys.argv[1]).zygote()
print("ready", flush=True)
while True:
    process = zygote.start(stdin=PIPE, stdout=PIPE)
    process.stdin.write(b'["orphan"]\\n')
    process.stdin.flush()
    process.stdout.readline()
    process.kill()
    process.communicate()
"""


@pytest.mark.parametrize("part", ["caller", "zygote"])
def test_parts_killed_at_random(snapshot: Snapshot, orphans: None, part: str) -> None:
    """Nothing of the zygote and its copies remains."""
    before = children()
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", OWNER, str(snapshot.directory)],
            env=ENVIRONMENT,
            stdout=PIPE,
            stderr=DEVNULL,
        ) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"ready\n"
            time.sleep(random.random() * 0.1)
            if part == "caller":
                owner.kill()
            else:
                _, zygote, *_ = children_of(owner.pid)
                os.kill(zygote, signal.SIGKILL)
            assert owner.wait(PATIENCE) == (-signal.SIGKILL if part == "caller" else 1)
        eventually(lambda: settled(before), "the end of all")


# ---- programs that cannot be one ----


def test_what_is_refused(tmp_path: Path) -> None:
    """Other languages, threads and child processes are refused before anything is started."""
    threads = (
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    family = (
        "import subprocess\nsubprocess.Popen(['sleep', '1000'], stdin=-3, stdout=-3, stderr=-3)\n"
    )
    park = "from pycriu_native import guest\nguest.wait()\n"
    before = children()
    for name, command, message in (
        ("shell", ["bash", "-c", SHELL], "a Python program that calls"),
        ("threads", [sys.executable, "-c", threads + park], "it had 2 threads"),
        ("family", [sys.executable, "-c", family + park], "it had 2 processes"),
    ):
        snapshot = Snapshot.take(command, tmp_path / name, env=ENVIRONMENT)
        with pytest.raises(OptionError, match=message):
            snapshot.zygote()
    assert children() <= before


def test_a_deadline_leaves_nothing(
    zygote: Zygote, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that reaches its deadline, or fails after the fork, leaves no child or message."""
    before = children()  # some of an earlier test may end meanwhile
    for deadline in (0, 1e-9):
        with pytest.raises(DeadlineError):
            zygote.start(deadline=deadline)
        assert children() <= before
    monkeypatch.setattr("pycriu_native.snapshots.zygote._wait", lambda *_: False)
    with pytest.raises(DeadlineError):
        zygote.start()  # the deadline passes after the request was sent
    assert children() <= before
    monkeypatch.undo()
    with pytest.raises(OptionError, match="too large"):
        zygote.start(extra_env={"LARGE": "x" * 100_000_000})
    assert children() <= before
    assert capfd.readouterr().err == ""
