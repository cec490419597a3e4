"""The unit of docs/schedulers.md under systemd: the output equals that of an uninterrupted run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pycriu_native.jobs import BUSY, State

from ..integration.support.processes import eventually
from .unit import NAME, UnitJob


def test_stopped_and_started(unit: UnitJob, tmp_path: Path) -> None:
    """``systemctl stop`` takes a last checkpoint, does not fail or restart the unit, and ``start``
    resumes the job. After the end of the command, ``start`` starts nothing.
    """
    unit.machine.boot()
    unit.until_steps()
    unit.machine.systemctl("stop", NAME)
    assert unit.property("ActiveState") == "inactive", unit.report()
    assert (unit.property("Result"), unit.property("ExecMainStatus")) == ("success", "75")
    status = unit.job.directory.status()
    assert (status.state, status.stopped_by) == (State.INTERRUPTED, "SIGTERM")
    assert status.checkpoints == 1, unit.report()
    unit.machine.systemctl("start", NAME)
    unit.until_resumed()
    unit.until_steps()
    assert unit.finish(tmp_path / "reference") > 20
    assert unit.property("NRestarts") == "0"
    before = unit.events()
    unit.machine.systemctl("start", NAME)
    unit.until("inactive")
    assert (unit.property("Result"), unit.events()) == ("success", before)


@pytest.mark.parametrize("which", ["run", "supervisor", "command"])
def test_killed(unit: UnitJob, tmp_path: Path, which: str) -> None:
    """systemd starts the unit again, which resumes the job."""
    unit.machine.boot()
    unit.until_steps()
    unit.checkpoint()
    unit.until_steps()
    first, *_, supervisor, command = unit.processes()
    pid = {"run": first, "supervisor": supervisor, "command": command}[which]
    unit.machine.run("kill", "-KILL", str(pid))
    unit.until_resumed()
    unit.until_steps()
    assert unit.property("NRestarts") == "1"
    unit.finish(tmp_path / "reference")
    assert unit.job.directory.status().restarted == 0


def test_another_run_has_the_job(unit: UnitJob, tmp_path: Path) -> None:
    """systemd starts the unit again until the other run has ended; then it resumes the job."""
    unit.machine.boot()
    unit.until_steps()
    unit.machine.systemctl("stop", NAME)
    start = unit.property("ExecStart")
    command = re.search(r"argv\[\]=(.*?) ;", start)
    assert command is not None, start
    other = ["--unit=other", f"--uid={unit.user}", "--working-directory=/srv/work"]
    unit.machine.run("systemd-run", *other, *command[1].split())
    unit.until_resumed()
    unit.machine.systemctl("start", NAME)
    busy = str(BUSY)
    eventually(lambda: unit.property("ExecMainStatus") == busy, "exit code 77", unit.report)
    unit.until_steps()
    unit.machine.systemctl("kill", "--kill-whom=main", "--signal=USR1", "other.service")
    unit.until_resumed(2)
    unit.finish(tmp_path / "reference")
    assert unit.job.directory.status().restarted == 0


def test_rebooted(unit: UnitJob, tmp_path: Path) -> None:
    """A shutdown takes a last checkpoint; the next boot resumes the job."""
    unit.machine.boot()
    unit.until_steps()
    unit.machine.halt()
    status = unit.job.directory.status()
    assert (status.state, status.checkpoints) == (State.INTERRUPTED, 1)
    unit.machine.boot()
    unit.until_resumed()
    unit.until_steps()
    unit.finish(tmp_path / "reference")


def test_a_power_failure(unit: UnitJob, tmp_path: Path) -> None:
    """The next boot resumes the job from its last regular checkpoint."""
    unit.machine.boot()
    unit.until_steps()
    unit.checkpoint()
    unit.until_steps()
    unit.machine.cut_power()
    unit.machine.boot()
    unit.until_resumed()
    unit.finish(tmp_path / "reference")
    assert unit.job.directory.status().restarted == 0


def test_a_stop_that_takes_too_long(unit: UnitJob, tmp_path: Path) -> None:
    """After ``TimeoutStopSec`` systemd kills the job, which is resumed from its last regular
    checkpoint.
    """
    unit.set("TimeoutStopSec=2")
    unit.machine.boot()
    unit.until_steps()
    unit.checkpoint()
    *_, supervisor, _ = unit.processes()
    unit.machine.run("kill", "-STOP", str(supervisor))
    unit.machine.systemctl("stop", NAME)
    assert unit.property("Result") == "timeout", unit.report()
    assert unit.job.directory.status().state is State.INTERRUPTED
    unit.machine.systemctl("start", NAME)
    unit.until_resumed()
    unit.finish(tmp_path / "reference")
    assert unit.job.directory.status().checkpoints == 1


def test_a_signal_to_all(unit: UnitJob, tmp_path: Path) -> None:
    """Without ``KillMode=mixed``, SIGTERM ends the command too; the job is resumed."""
    unit.set("KillMode=control-group")
    unit.machine.boot()
    unit.until_steps()
    unit.checkpoint()
    unit.until_steps()
    unit.machine.systemctl("stop", NAME)
    assert unit.property("ActiveState") == "inactive", unit.report()
    assert unit.property("Result") == "success", unit.report()
    unit.machine.systemctl("start", NAME)
    unit.until_resumed()
    unit.finish(tmp_path / "reference")
