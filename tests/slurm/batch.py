"""A batch script that runs a job, and that a test can submit several times."""

from __future__ import annotations

import os
import shlex
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from ..integration.support.jobs import RunningJob, check_exact, nothing_runs
from ..integration.support.processes import eventually
from .cluster import Cluster

PROJECT = Path(__file__).parents[2]


@dataclass
class BatchJob:
    """A job with its own directory."""

    cluster: Cluster
    place: Path
    user: int
    python: str
    numbers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.job = RunningJob(self.place / "work", python=self.python)
        os.chown(self.job.place, self.user, self.user)
        self.script = self.place / "script"

    def submit(self, *sbatch: str, run: tuple[str, ...] = ()) -> str:
        """Submit the job with options of ``sbatch`` and of ``run``. Returns its number.

        Without ``--dir`` the name of its directory contains the number.
        """
        path = os.pathsep.join([str(PROJECT), sysconfig.get_path("purelib")])
        words = [self.python, "-m", "pycriu_native", "run", "--slurm", "--every", "0.5", *run]
        words += ["--also", str(self.job.place / "out" / "*"), "--", *self.job.command]
        self.script.write_text(
            "#!/bin/bash\n"
            f"export PYTHONPATH={shlex.quote(path)} PYTHONDONTWRITEBYTECODE=1\n"
            f"exec {shlex.join(words)}\n"
        )
        number = self.cluster.submit(
            self.script, f"--output={self.place}/output", *sbatch, user=self.user
        )
        self.numbers.append(number)
        self.job.directory = type(self.job.directory)(
            run[run.index("--dir") + 1]
            if "--dir" in run
            else self.place / f"pycriu-native-{number}"
        )
        return number

    def until_state(self, *states: str) -> None:
        """Wait until SLURM reports one of these states of the job that was submitted last."""
        eventually(lambda: self.cluster.state(self.numbers[-1]) in states, f"{states}", self.report)

    def until_checkpoints(self, more: int = 2) -> None:
        """Wait until there are ``more`` additional checkpoints."""
        before = self.job.directory.status().checkpoints
        eventually(
            lambda: self.job.has_checkpoints(before + more), f"{more} checkpoints", self.report
        )

    def until_event(self, name: str) -> None:
        """Wait until there is an event with this name."""
        eventually(lambda: name in self.events(), name, self.report)

    def until_resumed(self, times: int) -> None:
        """Wait until the job was resumed this number of times."""
        eventually(
            lambda: self.job.directory.status().resumed >= times, "its resumption", self.report
        )

    def finish(self, reference: Path) -> int:
        """End the job, and compare its files with an uninterrupted run; returns its steps."""
        (self.job.place / "finish").touch()
        self.until_state("COMPLETED")
        return check_exact(self.job, reference)

    def events(self) -> list[str]:
        """The names of its events."""
        return self.job.events()

    def output(self) -> str:
        """The output of the batch script."""
        path = self.place / "output"
        return path.read_text() if path.exists() else ""

    def check_end(self) -> None:
        """Wait until no process of the job exists."""
        eventually(lambda: nothing_runs(self.job), "the end of the command")

    def report(self) -> str:
        """Output, events and logs, for the message of a failed test."""
        parts = [self.output(), *map(str, self.job.directory.events())]
        return "\n".join([*parts, *map(self.cluster.job, self.numbers[-1:]), self.cluster.logs()])
