"""restore_child: the restored root process is a child of the caller, which can read its exit
status.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    DeadlineError,
    Notification,
    Notify,
    RestoreResult,
    WorkerDiedError,
    WorkerPool,
    dump,
    restore,
    restore_child,
)

from .conftest import Spawn
from .support.processes import Target, children, eventually, parent_of, reap_all, tree

EXITS = """
    import os
    serve(exit=lambda: os._exit(42))
"""


FAMILY = """
    import os, signal
    for _ in range(2):
        if os.fork() == 0:
            os.fork()
            while True:
                signal.pause()
    serve(exit=lambda: os._exit(42))
"""
"""A root, two children and two grandchildren."""

MOMENTS = (Notify.PRE_RESTORE, Notify.POST_RESTORE)
"""Notifications at which a restore can be undone."""

Verb = Callable[..., RestoreResult]


def test_the_exit_status_of_a_child(spawn: Spawn, images: Path) -> None:
    """The restored process is a child of the caller, and waitpid returns its exit status."""
    target = spawn(EXITS)
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    result = restore_child(opts)
    assert result.pid == target.pid
    assert parent_of(result.pid) == os.getpid()
    assert target.runs_on()
    target.put("exit")
    assert result.wait() == 42
    assert result.wait() is None  # it was reaped


def test_a_plain_restore_is_no_child(spawn: Spawn, images: Path) -> None:
    """With ``restore`` the restored process is a child of init."""
    target = spawn(EXITS)
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    result = restore(opts)
    eventually(lambda: parent_of(result.pid) != os.getpid(), "a parent other than us")
    assert target.runs_on()
    with pytest.raises(TimeoutError):
        result.wait(0.01)
    target.put("exit")
    assert result.wait() is None


@pytest.fixture
def saved(spawn: Spawn, images: Path, orphans: None) -> tuple[Target, CriuOpts]:
    """Images of a family of processes, which have ended; the caller is a subreaper, so remaining
    processes of a restore become its children.
    """
    target = spawn(FAMILY)
    eventually(lambda: len(tree(target.pid)) == 5, "the family")
    opts = CriuOpts(images_directory=images)
    dump(target.pid, opts)
    reap_all()
    return target, opts


def _can_be_restored(target: Target, opts: CriuOpts) -> None:
    """A retry works: all pids are free."""
    result = restore_child(opts)
    assert target.runs_on()
    for pid in reversed(tree(target.pid)):
        os.kill(pid, signal.SIGKILL)
    reap_all()
    assert result.pid == target.pid


@pytest.mark.parametrize("verb", [restore_child, restore])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("way", ["hook", "killed", "deadline", "interrupt"])
def test_a_failure_leaves_no_child(
    saved: tuple[Target, CriuOpts], verb: Verb, moment: Notify, way: str
) -> None:
    """When the call raises, its processes are reaped, but not another child of the caller."""
    target, opts = saved
    others = children()
    made: list[int] = []

    def hook(notification: Notification) -> None:
        if notification.action is not moment:
            return
        if way == "killed":
            for pid in children() - others:
                with contextlib.suppress(ProcessLookupError):
                    if os.getpgid(pid) == pid and _name(pid) == "criu":
                        os.kill(pid, signal.SIGKILL)
        made.append(os.posix_spawn("/bin/true", ["true"], {}))
        if way == "deadline":
            time.sleep(5.5)
        elif way == "hook":
            raise LookupError(moment)
        elif way == "interrupt":
            signal.raise_signal(signal.SIGINT)

    expected = {
        "hook": LookupError,
        "killed": WorkerDiedError,
        "deadline": DeadlineError,
        "interrupt": KeyboardInterrupt,
    }[way]
    with pytest.raises(expected):
        verb(opts, on_notify=hook, deadline=5 if way == "deadline" else None)
    assert children() - others == set(made)
    assert os.waitpid(made[0], 0) == (made[0], 0)
    _can_be_restored(target, opts)


@pytest.mark.parametrize("warm", [False, True])
def test_a_taken_pid_leaves_no_child(saved: tuple[Target, CriuOpts], warm: bool) -> None:
    """If CRIU cannot create the last process, the earlier ones are reaped."""
    target, opts = saved
    assert opts.images_directory is not None
    last = max(int(core.stem[5:]) for core in Path(str(opts.images_directory)).glob("core-*.img"))
    with contextlib.ExitStack() as owned:
        via = owned.enter_context(WorkerPool(1)) if warm else None
        for _ in range(100):
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(last - 1))
            ours = os.posix_spawn("/bin/sleep", ["sleep", "99"], {})
            if ours == last:
                break
            os.kill(ours, signal.SIGKILL)
            os.waitpid(ours, 0)
        else:
            pytest.skip("the pid could not be had: other processes start all the time")
        if warm:
            assert isinstance(via, WorkerPool)
            with pytest.raises(CriuError):  # from now on the pool has workers for restores
                restore_child(opts, via=via)
            eventually(lambda: via._restoring.idle, "a worker of a pool")
        before = children()
        with pytest.raises(CriuError):
            restore_child(opts, via=via)
        assert ours in children()
        assert {pid for pid in children() - before if _name(pid) != "criu"} == set()
        os.kill(ours, signal.SIGKILL)
        os.waitpid(ours, 0)
    _can_be_restored(target, opts)


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
