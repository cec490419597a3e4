"""``leave_running``: the process continues after it was saved.

Without it the dump ends the process. With it the process is frozen while it is saved and then
continues with the same pid, without a lost or repeated step. The images have the state of the
process at the time of the dump. They can be restored where its pid is free: on another machine, in
another pid namespace, or here after the original process has ended.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pycriu_native import (
    CriuOpts,
    Notification,
    Notify,
    OptionError,
    PidInUseError,
    dump,
    restore,
)

from .conftest import Spawn
from .support.processes import Target, eventually, is_alive
from .support.second_machine import elsewhere

STEPS = """
    import os, threading, time

    steps = open(HERE / "steps", "ab", buffering=0)
    done = 0
    def work():
        global done
        while True:
            steps.write(b"%d\\n" % done)
            done += 1
            time.sleep(0.001)
    threading.Thread(target=work, daemon=True).start()
    serve(done=lambda: done)
"""
"""A process that writes the number of each step to a file."""


def steps(directory: Path) -> list[int]:
    """The written steps, without an incomplete last one."""
    text = (directory / "steps").read_text()
    return [int(line) for line in text[: text.rfind("\n") + 1].split()]


def goes_on(target: Target) -> None:
    """Wait until the process has done another hundred steps."""
    before = target.ask("done")
    eventually(lambda: target.ask("done") > before + 100, "a hundred steps")


def test_the_process_goes_on_and_no_step_is_lost(spawn: Spawn, images: Path) -> None:
    """Ten dumps of a process that counts: no number is lost or repeated."""
    target = spawn(STEPS)
    for number in range(10):
        goes_on(target)
        opts = CriuOpts(images_directory=f"{images}-{number}", leave_running=True)
        result = dump(target.pid, opts)
        assert not result.pid_free
        assert is_alive(target.pid)
    goes_on(target)
    written = steps(target.directory)
    assert len(written) > 1000
    assert written == list(range(len(written)))
    assert target.process.poll() is None


@pytest.mark.parametrize("leave_running", [None, False])
def test_without_it_the_process_is_gone(
    spawn: Spawn, images: Path, leave_running: bool | None
) -> None:
    """By default the dump ends the process."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images, leave_running=leave_running))
    assert not is_alive(target.pid)
    assert target.reap() == -9


def test_the_images_restore_beside_the_original(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """In another pid namespace, with a copy of its files, the copy continues from the dump while
    the original runs: two processes with the same pid and complete output.
    """
    target = spawn(STEPS)
    goes_on(target)
    at_the_dump: list[int] = []

    def copy_files(notification: Notification) -> None:
        if notification.action is Notify.POST_DUMP:  # the process is frozen
            shutil.copytree(target.directory, tmp_path / "copy")
            at_the_dump.extend(steps(target.directory))

    opts = CriuOpts(images_directory=images, leave_running=True)
    dump(target.pid, opts, on_notify=copy_files)
    with pytest.raises(PidInUseError, match=r"a running process.* was started by this process"):
        restore(CriuOpts(images_directory=images))
    goes_on(target)

    with elsewhere(target, tmp_path / "copy", images_directory=str(images)) as copy:
        goes_on(copy)
        goes_on(target)
        assert copy.ask("pid") == target.ask("pid") == target.pid
        for one in (copy, target):
            written = steps(one.directory)
            assert written == list(range(len(written)))
            assert len(written) > len(at_the_dump) + 100
    goes_on(target)


def test_the_images_restore_once_the_original_is_gone(spawn: Spawn, images: Path) -> None:
    """The copy replaces the original, with the state of the dump."""
    target = spawn("""
        value = ["before"]
        serve(get=lambda: value[0], put=lambda new: value.__setitem__(0, new))
    """)
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    target.ask("put", "after")
    assert target.ask("get") == "after"
    target.end()
    restore(CriuOpts(images_directory=images))
    assert target.ask("get") == "before"
    assert target.runs_on()


def test_it_belongs_to_the_dump(spawn: Spawn, images: Path) -> None:
    """A restore refuses it, like every option that does not affect a restore."""
    target = spawn()
    opts = CriuOpts(images_directory=images, leave_running=True)
    dump(target.pid, opts)
    target.end()
    with pytest.raises(OptionError, match="leave_running=True: belongs to dump"):
        restore(opts)
    restore(opts.only_for("restore"))
    assert target.runs_on()
