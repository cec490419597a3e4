"""Each process of a started copy is killed at random times: nothing of it remains.

``make snapshot-kills`` kills a thousand times; the number is in ``PYCRIU_NATIVE_SNAPSHOT_KILLS``.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pycriu_native.snapshots import Snapshot

from .support.processes import PATIENCE, children, children_of, eventually, kill, reap_all, state
from .test_snapshots import COMMAND, ENVIRONMENT, PROGRAM

KILLS = int(os.environ.get("PYCRIU_NATIVE_SNAPSHOT_KILLS", "12"))
OWNER = PROGRAM.with_name("snapshot_owner.py")
OWN_PLACES = 'mount -t ramfs none /run && mount --bind "$0" /tmp && exec "$@"'
"""Starts a program whose CRIU tests the kernel in each call, with an own directory for that."""
PARTS = ("criu", "namespace_init", "copy", "caller")


def names_of_children(pid: int) -> dict[int, str]:
    """The children of the owner by pid: ``criu``, ``namespace_init`` or ``copy``."""
    result = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            for child in (task / "children").read_text().split():
                name = Path(f"/proc/{child}/comm").read_text().strip()
                result[int(child)] = name if name in PARTS else "copy"
        except OSError:
            continue
    return result


class Owner:
    """A process that starts one copy after another."""

    def __init__(
        self,
        snapshot: Snapshot,
        cgroup: Path,
        memory: str,
        scratch: Path,
        within: Sequence[str] = (),
    ) -> None:
        """``within`` is a command that starts another command in its place."""
        self.process = subprocess.Popen(
            [*within, sys.executable, str(OWNER), str(snapshot.directory), str(cgroup), memory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**ENVIRONMENT, "TMPDIR": str(scratch)},
            text=True,
        )

    def outcome(self) -> str:
        """The end of its next copy."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the owner ended with {self.process.wait(PATIENCE)}"
        return line.strip()

    def act(self, part: str) -> bool:
        """Kill a process, if it exists now."""
        found = list(names_of_children(self.process.pid).items())
        random.shuffle(found)  # the fork server with shared memory is a criu, too
        for pid, name in found:
            if name == part and state(pid) not in ("", "Z"):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    return False
                return True
        return False

    def end(self) -> int:
        """End it after its present copy."""
        self.process.communicate("x", timeout=PATIENCE)
        return self.process.returncode


@pytest.mark.timeout(60 + KILLS * 20)
@pytest.mark.parametrize("memory", ["plain", "shared"])
def test_parts_killed_at_random(
    memory: str,
    cgroup: Path,
    orphans: None,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """The worker, the init process, the copy and the caller are killed: no process, file or mount
    remains. All orphans become children of this process, and the cgroup has all processes of the
    copies.
    """
    snapshot = Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    files = sorted(path.name for path in snapshot.directory.iterdir())
    before = children()
    counts = dict.fromkeys(PARTS, 0)
    owner = Owner(snapshot, cgroup, memory, scratch)
    try:
        assert owner.outcome() == "ok"
        for number in range(KILLS):
            part = PARTS[number % len(PARTS)]
            time.sleep(random.random() * 0.2)
            if part == "caller":
                kill(owner.process.pid)
                owner.process.communicate()
                eventually(lambda: settled(before), "the end of all that the caller had started")
                assert (cgroup / "cgroup.procs").read_text() == ""
                owner = Owner(snapshot, cgroup, memory, scratch)
                assert owner.outcome() == "ok"
                counts[part] += 1
            else:
                counts[part] += bool(eventually(functools.partial(owner.act, part), part))
        while owner.outcome() != "ok":
            pass
        assert owner.end() == 0
        eventually(lambda: settled(before), "the end of all copies")
    finally:
        kill(owner.process.pid)
        owner.process.communicate()
        reap_all()
    record_property("measured", counts)
    assert (cgroup / "cgroup.procs").read_text() == ""
    assert list(scratch.iterdir()) == []
    made = {"starts", "shared"}
    assert sorted({path.name for path in snapshot.directory.iterdir()} - made) == files


@pytest.mark.timeout(60 + KILLS * 20)
def test_callers_killed_while_criu_tests_the_kernel(cgroup: Path, orphans: None) -> None:
    """The worker leaves no temporary directory, whether it was forked by a fork server or not."""
    if any(Path(path).resolve().is_relative_to("/tmp") for path in (__file__, sys.executable)):
        pytest.skip("the checkout or Python is below /tmp, which the test hides from the caller")
    before = children()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        place = Path(name)
        temporary = place / "tmp"
        temporary.mkdir()
        snapshot = Snapshot.take(COMMAND, place / "snapshot", env=ENVIRONMENT)
        within = [*("unshare", "--mount", "--propagation", "private"), *("sh", "-c", OWN_PLACES)]
        within.append(str(temporary))
        seen = 0
        for number in range(KILLS):
            owner = Owner(snapshot, cgroup, "plain", place, within)
            try:
                if number % 2:
                    assert owner.outcome() == "ok"  # the next one is the first of the fork server
                until = time.monotonic() + 1
                while not (is_seen := kernel_tests(temporary) != []) and time.monotonic() < until:
                    pass
                seen += is_seen
            finally:
                kill(owner.process.pid)
                owner.process.communicate()
            eventually(lambda: settled(before), "the end of all that the caller had started")
            assert kernel_tests(temporary) == []
    assert seen, "no caller was killed at such a time"


def kernel_tests(directory: Path) -> list[str]:
    """The temporary directories of CRIU's tests of the kernel."""
    return [name for name in os.listdir(directory) if ".criu.move_mount_set_group." in name]


def settled(before: set[int]) -> bool:
    """Whether only the earlier children remain; zombies are reaped."""
    remaining = children() - before
    for pid in remaining:
        if state(pid) == "Z":
            os.waitpid(pid, 0)
    return not remaining


def test_the_caller_is_killed_while_the_program_starts(tmp_path: Path, orphans: None) -> None:
    """The program that is prepared for a snapshot, and its children, end with the caller, although
    they never call ``guest.wait()``.
    """
    before = children()
    program = (
        "import subprocess, time\n"
        "subprocess.Popen(['sleep', '1000'])\n"
        "print('here', end='\\n', flush=True)\n"
        "time.sleep(1000)\n"
    )
    code = (
        "import sys\n"
        "from pycriu_native.snapshots import Snapshot\n"
        "Snapshot.take([sys.executable, '-c', sys.argv[1]], sys.argv[2], output=1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, program, str(tmp_path / "snapshot")],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "here\n"
        (pid,) = children_of(caller.pid)
        (child,) = children_of(pid)
        caller.kill()
        caller.wait(PATIENCE)
    eventually(lambda: state(pid) in ("", "Z") and state(child) in ("", "Z"), "the end of both")
    reap_all()
    assert children() <= before


def test_a_program_that_is_bound_to_its_caller_works(tmp_path: Path) -> None:
    """It may write to its standard input and change its flags; a copy has no trace of the bond."""
    program = (
        "import os, socket, sys\n"
        "from pycriu_native import guest\n"
        "peer = socket.socket(fileno=os.dup(0))\n"
        "peer.send(b'data')\n"
        "os.set_blocking(0, False)\n"
        "guest.wait()\n"
        "import fcntl\n"
        "print(fcntl.fcntl(0, fcntl.F_GETOWN), fcntl.fcntl(0, fcntl.F_GETFL) & os.O_ASYNC)\n"
    )
    snapshot = Snapshot.take(
        [sys.executable, "-c", program], tmp_path / "snapshot", env=ENVIRONMENT
    )
    with snapshot.start(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=PATIENCE)[0] == "0 0\n"
