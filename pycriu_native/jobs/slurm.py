"""Jobs in batch scripts of SLURM, which are requeued after an interruption."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .._support.held_signals import held
from ..errors import CriuError, OptionError, Problem
from .directory import STORAGE, JobDirectory, State
from .job import UNTIL_FREE, Job, JobResult

REQUEUED_AFTER = (signal.SIGUSR1.name, "notice", STORAGE)
"""The interruptions after which a job is requeued. SIGTERM is not among them, since ``scancel``
also sends it, and SLURM itself requeues a job after preemption or the loss of its node."""

PATIENCE = 60.0
"""Timeout of a request to SLURM's controller, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmJob:
    """The SLURM job that this process runs in."""

    id: str
    """Its id, which is kept when the job is requeued; each task of an array has its own."""
    restarts: int
    """Number of times it was requeued."""
    submitted_from: str
    """The working directory of ``sbatch``."""

    @classmethod
    def current(cls, environ: Mapping[str, str] | None = None) -> SlurmJob:
        """Read the environment; default: that of this process. Raises ``OptionError``."""
        environ = os.environ if environ is None else environ
        problems = []
        nodes = environ.get("SLURM_JOB_NUM_NODES", "1")
        restarts = environ.get("SLURM_RESTART_COUNT", "0")
        if "SLURM_JOB_ID" not in environ:
            rule = "the environment has no SLURM_JOB_ID: a batch script of SLURM is accepted"
            problems.append(Problem("slurm", True, rule))
        if nodes != "1":
            rule = "a job runs on one host; make SLURM allocate one (#SBATCH --nodes=1)"
            problems.append(Problem("SLURM_JOB_NUM_NODES", nodes, rule))
        if not restarts.isdecimal():
            problems.append(Problem("SLURM_RESTART_COUNT", restarts, "a number is accepted"))
        if shutil.which("scontrol") is None:
            rule = "the program scontrol, which requeues the job, is not on the PATH"
            problems.append(Problem("slurm", True, rule))
        if problems:
            raise OptionError(problems, verb="run")
        return cls(
            id=environ["SLURM_JOB_ID"],
            restarts=int(restarts),
            submitted_from=environ.get("SLURM_SUBMIT_DIR") or os.getcwd(),
        )

    def default_directory(self) -> str:
        """``pycriu-native-ID`` in the directory that the job was submitted from.

        Raises ``OptionError`` if it belongs to another job: SLURM can reuse ids.
        """
        path = Path(self.submitted_from) / f"pycriu-native-{self.id}"
        if not self.restarts and path.exists():
            rule = (
                f"it exists, but SLURM has not restarted job {self.id} yet: it belongs to another "
                "job, or to another command of this one; name a directory with --dir"
            )
            raise OptionError([Problem("directory", str(path), rule)], verb="run")
        return str(path)

    def may_be_requeued(self) -> bool:
        """Whether SLURM accepts a request to requeue the job; True if this cannot be determined."""
        return " Requeue=0 " not in _scontrol("show", "job", "--oneliner", self.id).stdout

    def requeue(self) -> None:
        """Requeue the job. SLURM then ends its processes. Raises ``CriuError``."""
        done = _scontrol("requeue", self.id)
        if done.returncode:
            why = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
            raise CriuError(f"SLURM does not requeue job {self.id}: {why}", verb="run")


def run_in_slurm(job: Job, slurm: SlurmJob | None = None) -> JobResult:
    """Run a job; requeue it if SIGUSR1, a notice or a failure of the storage has interrupted it.

    It is not requeued if this run took no checkpoint, since it could be requeued endlessly. Raises
    as ``Job.run``, and ``OptionError`` if SLURM would not requeue it.
    """
    with held():  # SLURM sends SIGTERM to all processes of a requeued job
        return _run(job, slurm or SlurmJob.current())


def _run(job: Job, slurm: SlurmJob) -> JobResult:
    if not slurm.may_be_requeued():
        rule = f"job {slurm.id} cannot be requeued: submit it with --requeue"
        raise OptionError([Problem("slurm", True, rule)], verb="run")
    directory = JobDirectory(job.directory)
    before = directory.status().checkpoints
    # A run that SLURM considers lost can continue: this one waits for its end.
    result = job.run(wait=None if slurm.restarts else UNTIL_FREE)
    after = directory.status()
    if result.state is not State.INTERRUPTED or after.stopped_by not in REQUEUED_AFTER:
        return result
    if after.checkpoints == before and after.stopped_by != STORAGE:
        why = f"SLURM job {slurm.id} is not requeued: this run has taken no checkpoint"
        return replace(result, message=f"{result.message}; {why}")
    message = f"SLURM requeues job {slurm.id}"
    try:
        slurm.requeue()
        directory.event("requeued", message=message, slurm=slurm.id)
    except CriuError as error:
        message = str(error)
    return replace(result, message=f"{result.message}; {message}")


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``scontrol``. A timeout is returned as exit status 1."""
    try:
        return subprocess.run(
            ["scontrol", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(["scontrol", *words], 1, "", str(error))
