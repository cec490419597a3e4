"""A job in the unit of docs/schedulers.md."""

from __future__ import annotations

import os
import re
import shlex
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from pycriu_native.jobs.directory import JobDirectory

from ..integration.support.jobs import STEPPER, RunningJob, check_exact
from ..integration.support.processes import eventually
from .machine import Machine

PROJECT = Path(__file__).parents[2]
NAME = "job1.service"
USER = 64999
ALSO = "--also /srv/work/out/*"
"""The command also writes a file that it opens for each line."""


def recipe() -> str:
    """The unit of the page."""
    found = re.search(r"```ini\n(.*?)```", (PROJECT / "docs" / "schedulers.md").read_text(), re.S)
    assert found is not None
    return found[1]


@dataclass
class UnitJob:
    """The unit ``job1.service``, enabled in a system."""

    machine: Machine
    user: str
    python: str

    def __post_init__(self) -> None:
        machine, user = self.machine, USER if self.user == "jobs" else 0
        text = recipe().replace(" --grace 100s", f" --grace 100s {ALSO}")
        assert ALSO in text
        if self.user == "root":
            text = text.replace("User=jobs\n", "")
        machine.file("/etc/passwd", _with("/etc/passwd", f"jobs:x:{USER}:{USER}::/:/bin/sh"))
        machine.file("/etc/group", _with("/etc/group", f"jobs:x:{USER}:"))
        machine.unit(NAME).write_text(text)
        wanted = machine.unit("multi-user.target.wants")
        wanted.mkdir()
        (wanted / NAME).symlink_to(f"/etc/systemd/system/{NAME}")
        path = os.pathsep.join([str(PROJECT), sysconfig.get_path("platlib")])
        program = [self.python, "-m", "pycriu_native"]
        machine.file(
            "/usr/local/bin/pycriu-native",
            f"#!/bin/sh\nexport PYTHONPATH={shlex.quote(path)} PYTHONDONTWRITEBYTECODE=1\n"
            f'exec {shlex.join(program)} "$@"\n',
            0o755,
        )
        for name in ("work", "ckpt"):
            (machine.srv / name).mkdir()
            os.chown(machine.srv / name, user, user)
        command = [self.python, str(STEPPER), "/srv/work", str(10**9), "0.01"]
        simulate = machine.srv / "work" / "simulate"
        simulate.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")
        simulate.chmod(0o755)
        self.job = RunningJob(machine.srv / "work")
        self.job.directory = JobDirectory(machine.srv / "ckpt" / "job1")

    def set(self, *lines: str) -> None:
        """Change settings of the service, for the next boot."""
        place = self.machine.unit(f"{NAME}.d")
        place.mkdir()
        (place / "test.conf").write_text("\n".join(["[Service]", *lines, ""]))

    def until(self, state: str) -> None:
        """Wait until the unit is in a state such as ``active``."""
        eventually(lambda: self.property("ActiveState") == state, state, self.report)

    def until_steps(self, number: int = 10) -> None:
        """Wait until the command has made so many more steps."""
        before = self.steps()
        eventually(lambda: self.steps() > before + number, f"{number} steps", self.report)

    def until_resumed(self, times: int = 1) -> None:
        """Wait until it was resumed so often."""
        what = f"resumption {times}"
        eventually(lambda: self.job.directory.status().resumed >= times, what, self.report)

    def steps(self) -> int:
        """The number of steps that the command has made."""
        path = self.job.directory.path / "stdout"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def property(self, name: str) -> str:
        """A property of the unit."""
        return self.machine.property(NAME, name)

    def checkpoint(self) -> None:
        """Take a checkpoint now."""
        self.machine.run("/usr/local/bin/pycriu-native", "job", "checkpoint", "/srv/ckpt/job1")

    def processes(self) -> list[int]:
        """The pids of the unit in its system, in their order: run, the supervisor, the command.

        CRIU is left out.
        """
        path = f"/sys/fs/cgroup/system.slice/{NAME}/cgroup.procs"
        names = 'while read p; do if read n </proc/$p/comm; then echo "$p $n"; fi; done <"$0"'
        lines = map(str.split, self.machine.run("sh", "-c", names, path).splitlines())
        return sorted(int(pid) for pid, name in lines if name != "criu")

    def events(self) -> list[str]:
        """The names of the job's events."""
        return self.job.events()

    def finish(self, reference: Path) -> int:
        """Have the command end, and compare its output; its steps."""
        (self.job.place / "finish").touch()
        self.until("inactive")
        assert self.property("Result") == "success", self.report()
        assert self.property("ExecMainStatus") == "0", self.report()
        return check_exact(self.job, reference)

    def report(self) -> str:
        """What has happened, for the message of a test that fails."""
        return "\n".join([self.machine.report(), *map(str, self.job.directory.events())])


def _with(path: str, line: str) -> str:
    return f"{Path(path).read_text()}{line}\n"
