"""Options for the state of processes after a call, and for checks of the restore.

``leave_stopped`` leaves a dumped or restored process stopped until it receives SIGCONT. With
``exec_cmd`` CRIU executes a command after a restore, which becomes the parent of the restored
process: for example a supervisor. ``skip_file_rwx_check`` and ``evasive_devices`` are for files
that have changed. ``lsm_profile`` needs a kernel with that security module. ``unprivileged`` is for
a CRIU with CAP_CHECKPOINT_RESTORE only; root can set it too, and then gets smaller images.
``log_to_stderr`` writes no log file.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    OptionError,
    PidInUseError,
    RestoreResult,
    dump,
    restore,
)

from .conftest import Spawn
from .support import cgroups, releases
from .support.processes import Target, eventually, kill, parent_of, state


def _dumped(spawn: Spawn, images: Path, scenario: str = "serve()") -> Target:
    target = spawn(scenario)
    target.dump(CriuOpts(images_directory=images))
    return target


# ---- leave_stopped ----


def test_a_dump_may_leave_the_process_stopped(spawn: Spawn, images: Path) -> None:
    """The process is stopped; after SIGCONT it continues without a lost step."""
    target = spawn()
    ticks = target.ask("ticks")
    result = dump(target.pid, CriuOpts(images_directory=images, leave_stopped=True))
    assert not result.pid_free
    eventually(lambda: state(target.pid) == "T", "its stop")
    os.kill(target.pid, signal.SIGCONT)
    assert target.ask("ticks") >= ticks
    assert target.runs_on()


def test_a_restore_may_leave_the_process_stopped(spawn: Spawn, images: Path) -> None:
    """The restored process is stopped until SIGCONT; without the field it runs at once."""
    target = _dumped(spawn, images)
    opts = CriuOpts(images_directory=images, leave_stopped=True)
    restore(opts)
    threads = os.listdir(f"/proc/{target.pid}/task")
    assert {state(int(tid)) for tid in threads} == {"T"}
    os.kill(target.pid, signal.SIGCONT)
    assert target.runs_on()
    assert state(target.pid) != "T"


def test_leave_stopped_and_running(spawn: Spawn, images: Path) -> None:
    """leave_stopped and leave_running together are refused by name before anything is touched."""
    target = spawn()
    opts = CriuOpts(images_directory=images, leave_stopped=True, leave_running=True)
    with pytest.raises(OptionError, match="leave_running") as caught:
        dump(target.pid, opts)
    assert caught.value.options == ("leave_running",)
    assert not images.exists()
    assert target.runs_on()


# ---- exec_cmd ----


@pytest.fixture
def supervised() -> Iterator[list[RestoreResult]]:
    """Restores whose commands are children of this process, ended after the test."""
    made: list[RestoreResult] = []
    yield made
    for result in made:
        assert result.exec_pid is not None
        kill(result.exec_pid)


def test_criu_becomes_a_command(
    orphans: None, spawn: Spawn, images: Path, supervised: list[RestoreResult]
) -> None:
    """The command is a child of the caller and the parent of the restored process, and writes into
    the log.
    """
    target = _dumped(spawn, images)
    script = 'echo "command of $PPID"; echo to stderr >&2; read line <"$0"; exit 7'
    gate = images.parent / "gate"
    os.mkfifo(gate)
    command = ["/bin/sh", "-c", script, str(gate)]
    result = restore(CriuOpts(images_directory=images, exec_cmd=command))
    supervised.append(result)
    assert result.pid == target.pid
    assert result.exec_pid is not None
    assert parent_of(target.pid) == result.exec_pid
    assert parent_of(result.exec_pid) == os.getpid()
    assert target.runs_on()

    gate.write_text("go\n")
    _, status = os.waitpid(result.exec_pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    log = (images / "restore.log").read_text()
    assert f"command of {os.getpid()}\n" in log
    assert "to stderr\n" in log
    assert target.runs_on()


def test_without_a_command_criu_ends(orphans: None, spawn: Spawn, images: Path) -> None:
    """A plain restore leaves no process of CRIU: init is the parent of the restored one."""
    target = _dumped(spawn, images)
    result = restore(CriuOpts(images_directory=images))
    assert result.exec_pid is None
    assert parent_of(target.pid) == os.getpid()  # this test is the reaper


def test_a_command_that_cannot_run(
    orphans: None, spawn: Spawn, images: Path, supervised: list[RestoreResult]
) -> None:
    """If the command cannot run, the process is restored, and the log has the error."""
    target = _dumped(spawn, images)
    result = restore(CriuOpts(images_directory=images, exec_cmd=["/does/not/exist"]))
    supervised.append(result)
    assert result.exec_pid is not None
    _, status = os.waitpid(result.exec_pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert "Failed to exec cmd /does/not/exist" in (images / "restore.log").read_text()
    assert target.runs_on()


# ---- files that are not what they were ----


def test_skip_file_rwx_check(orphans: None, spawn: Spawn, images: Path) -> None:
    """A file with changed permissions is refused by name, or accepted."""
    target = _dumped(spawn, images, "file = open(HERE / 'data', 'w')\nserve()")
    data = target.directory / "data"
    before = stat.S_IMODE(data.stat().st_mode)
    data.chmod(before ^ stat.S_IXUSR)
    with pytest.raises(CriuError, match="skip_file_rwx_check") as caught:
        restore(CriuOpts(images_directory=images))
    assert caught.value.options == ("skip_file_rwx_check",)
    assert any(str(data)[1:] in line for line in caught.value.lines)
    target.end()  # reaps processes of the failed restore

    restore(CriuOpts(images_directory=images, skip_file_rwx_check=True))
    assert target.runs_on()
    assert stat.S_IMODE(data.stat().st_mode) == before ^ stat.S_IXUSR


def test_other_changes_are_still_refused(orphans: None, spawn: Spawn, images: Path) -> None:
    """Only the check of r, w and x is skipped: a file with a new set-uid bit is refused."""
    releases.required("3.18", "skip_file_rwx_check")
    target = _dumped(spawn, images, "file = open(HERE / 'data', 'w')\nserve()")
    (target.directory / "data").chmod(0o4755)
    with pytest.raises(CriuError, match="bad mode"):
        restore(CriuOpts(images_directory=images, skip_file_rwx_check=True))


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device node like /dev/null, over which others can be mounted."""
    node = tmp_path / "device"
    try:
        os.mknod(node, stat.S_IFCHR, os.stat("/dev/null").st_rdev)
    except PermissionError:
        pytest.skip("device nodes cannot be made here")
    node.chmod(stat.S_IMODE(os.stat("/dev/null").st_mode))
    return node


@contextmanager
def _mounted_over(node: Path, other: str) -> Iterator[None]:
    subprocess.run(["mount", "--bind", other, node], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", node], check=True)


OPEN_DEVICE = (
    "import os\ndevice = open({!r}, 'w')\nserve(which=lambda: os.fstat(device.fileno()).st_rdev)"
)


@pytest.mark.cures("evasive")
def test_evasive_devices(spawn: Spawn, images: Path, device: Path) -> None:
    """If the name belongs to another node of the same device now, the device is found by number."""
    target = spawn(OPEN_DEVICE.format(str(device)))
    which = target.ask("which")
    with _mounted_over(device, "/dev/null"):
        with pytest.raises(CriuError, match="evasive_devices") as caught:
            dump(target.pid, CriuOpts(images_directory=images))
        assert caught.value.options == ("evasive_devices",)
        assert target.runs_on()

        target.dump(CriuOpts(images_directory=images, evasive_devices=True))
        restore(CriuOpts(images_directory=images))
        assert target.ask("which") == which
        target.end()


def test_evasive_devices_refuses_another_device(spawn: Spawn, images: Path, device: Path) -> None:
    """Another device under that name is refused nevertheless, and the process continues."""
    target = spawn(OPEN_DEVICE.format(str(device)))
    with _mounted_over(device, "/dev/zero"):
        with pytest.raises(CriuError, match="Unaccessible path"):
            dump(target.pid, CriuOpts(images_directory=images, evasive_devices=True))
        assert target.runs_on()
        target.end()


# ---- security modules and privileges ----


def test_lsm_profile_has_a_form(images: Path) -> None:
    """``KIND:NAME`` with a kind that CRIU supports; anything else is refused by name."""
    for wrong in ("unconfined", "smack:label", "AppArmor:x"):
        with pytest.raises(OptionError, match="lsm_profile"):
            dump(os.getppid(), CriuOpts(images_directory=images, lsm_profile=wrong))
    assert not images.exists()


def test_lsm_profile_of_a_module_that_does_not_run(spawn: Spawn, images: Path) -> None:
    """The error names the field, and the process continues."""
    modules = Path("/sys/kernel/security/lsm")
    running = modules.read_text().split(",") if modules.exists() else []
    absent = [kind for kind in ("apparmor", "selinux") if kind not in running]
    if not absent:
        pytest.skip("this kernel runs apparmor and selinux")
    target = spawn()
    opts = CriuOpts(images_directory=images, lsm_profile=f"{absent[0]}:something")
    with pytest.raises(CriuError, match="lsm_profile") as caught:
        dump(target.pid, opts)
    assert caught.value.options == ("lsm_profile",)
    assert target.runs_on()


def test_unprivileged_saves_no_cgroups(
    make_cgroup: cgroups.Make, spawn: Spawn, images: Path, tmp_path: Path
) -> None:
    """Root can set it too: then cgroups are not saved, and the rest is restored."""
    target = spawn()
    hierarchy = cgroups.find("pids") or cgroups.required("")
    cgroups.enter(make_cgroup(hierarchy), target.pid)
    full = tmp_path / "full"
    dump(target.pid, CriuOpts(images_directory=full, leave_running=True))
    assert (full / "cgroup.img").exists()
    dump(target.pid, CriuOpts(images_directory=images, unprivileged=True))
    assert not (images / "cgroup.img").exists()
    target.reap()
    restore(CriuOpts(images_directory=images, unprivileged=True))
    assert target.runs_on()


# ---- the log ----


@pytest.mark.parametrize("fields", [{}, {"log_to_stderr": True}], ids=["file", "stderr"])
def test_log_to_stderr(spawn: Spawn, images: Path, fields: dict[str, Any]) -> None:
    """No log file is written, and errors are read from CRIU's standard error."""
    target = spawn()
    opts = CriuOpts(images_directory=images, leave_running=True, **fields)
    result = dump(target.pid, opts)
    log = None if fields else str(images / "dump.log")
    assert result.log == log
    assert (images / "dump.log").exists() == (log is not None)

    with pytest.raises(PidInUseError) as caught:
        restore(CriuOpts(images_directory=images, **fields))
    assert caught.value.log == (None if fields else str(images / "restore.log"))
    assert (images / "restore.log").exists() == (log is not None)
    assert any("Can't fork for" in line for line in caught.value.lines)
    assert target.runs_on()
