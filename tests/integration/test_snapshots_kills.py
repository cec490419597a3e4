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
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pycriu_native.snapshots import Snapshot

from .support.processes import PATIENCE, children, eventually, kill, reap_all, state
from .test_snapshots import COMMAND, ENVIRONMENT, PROGRAM

KILLS = int(os.environ.get("PYCRIU_NATIVE_SNAPSHOT_KILLS", "12"))
OWNER = PROGRAM.with_name("snapshot_owner.py")
WITHOUT_CACHE = (
    *("unshare", "--mount", "--propagation", "private"),
    *("sh", "-c", 'mount -t ramfs none /run && exec "$0" "$@"'),
)
"""Starts a program whose CRIU tests the kernel in each call."""
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
def test_callers_killed_while_criu_tests_the_kernel(
    cgroup: Path, orphans: None, tmp_path: Path
) -> None:
    """The worker leaves no temporary directory, whether it was forked by a fork server or not."""
    snapshot = Snapshot.take(COMMAND, tmp_path / "snapshot", env=ENVIRONMENT)
    before, other = children(), kernel_tests()
    for number in range(KILLS):
        owner = Owner(snapshot, cgroup, "plain", tmp_path, WITHOUT_CACHE)
        try:
            if number % 2:
                assert owner.outcome() == "ok"  # the next one is the first of the fork server
            until = time.monotonic() + 1
            while kernel_tests() <= other and time.monotonic() < until:
                pass
        finally:
            kill(owner.process.pid)
            owner.process.communicate()
        eventually(lambda: settled(before), "the end of all that the caller had started")
    eventually(lambda: kernel_tests() <= other, "the removal of the temporary directories")


def kernel_tests() -> set[str]:
    """The temporary directories of CRIU's tests of the kernel."""
    return {name for name in os.listdir("/tmp") if name.startswith(".criu.move_mount_set_group.")}


def settled(before: set[int]) -> bool:
    """Whether only the earlier children remain; zombies are reaped."""
    remaining = children() - before
    for pid in remaining:
        if state(pid) == "Z":
            os.waitpid(pid, 0)
    return not remaining
