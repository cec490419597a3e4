"""Jobs in batch scripts of SLURM, with a program that replaces ``scontrol``."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pycriu_native import CriuError, OptionError
from pycriu_native.jobs import Job, JobResult, JobStatus, State
from pycriu_native.jobs.directory import JobDirectory
from pycriu_native.jobs.job import UNTIL_FREE
from pycriu_native.jobs.slurm import SlurmJob, run_in_slurm

FAKE = """#!/bin/sh
echo "$*" >> {calls}
case $1 in
show) echo "JobId=7 JobState=RUNNING {fields} Restarts=0" ;;
*) {requeue} ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a batch script; the file has one line for each call of ``scontrol``."""
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path))
    _scontrol(tmp_path)
    return tmp_path / "calls"


def _scontrol(place: Path, fields: str = "Requeue=1", requeue: str = ":") -> None:
    program = place / "bin" / "scontrol"
    program.parent.mkdir(exist_ok=True)
    program.write_text(FAKE.format(calls=place / "calls", fields=fields, requeue=requeue))
    program.chmod(0o755)


def _lines(calls: Path) -> list[str]:
    return calls.read_text().splitlines() if calls.exists() else []


def test_the_environment(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Number, restarts and directory of a job."""
    job = SlurmJob.current()
    assert (job.id, job.restarts, job.submitted_from) == ("7", 0, str(tmp_path))
    assert job.default_directory() == str(tmp_path / "pycriu-native-7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert SlurmJob.current().restarts == 3
    assert not _lines(calls)


REFUSED: dict[str, dict[str, str | None]] = {
    "no SLURM_JOB_ID": {"SLURM_JOB_ID": None},
    "SLURM_JOB_NUM_NODES='2'": {"SLURM_JOB_NUM_NODES": "2"},
    "SLURM_RESTART_COUNT='x'": {"SLURM_RESTART_COUNT": "x"},
    "the program scontrol": {"PATH": "/nowhere"},
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.usefixtures("calls")
def test_environments_that_are_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the problem."""
    for name, value in REFUSED[what].items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=what):
        SlurmJob.current()


@pytest.mark.usefixtures("calls")
def test_a_number_that_was_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that exists before the first restart belongs to another job."""
    (tmp_path / "pycriu-native-7").mkdir()
    with pytest.raises(OptionError, match="belongs to another job"):
        SlurmJob.current().default_directory()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert SlurmJob.current().default_directory() == str(tmp_path / "pycriu-native-7")


class _Interrupted:
    """An interrupted run, without CRIU."""

    def __init__(self, place: Path, stopped_by: str | None, checkpoints: int) -> None:
        self.job = Job(place / "job", ["true"])
        directory = JobDirectory(self.job.directory)
        directory.path.mkdir()
        directory.keep(JobStatus(state=State.INTERRUPTED, checkpoints=3))
        self.after = JobStatus(
            state=State.INTERRUPTED, checkpoints=3 + checkpoints, stopped_by=stopped_by
        )
        self.directory = directory

    def run(self, *, wait: float | None) -> JobResult:
        self.waited = wait
        self.directory.keep(self.after)
        return JobResult(state=State.INTERRUPTED, exit_code=75, message="interrupted")


@pytest.mark.parametrize(
    ("stopped_by", "checkpoints", "again"),
    [
        ("SIGUSR1", 1, True),
        ("notice", 1, True),
        ("SIGTERM", 1, False),
        (None, 1, False),
        ("SIGUSR1", 0, False),
        ("storage", 0, True),
    ],
)
def test_what_is_queued_again(
    calls: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped_by: str | None,
    checkpoints: int,
    again: bool,
) -> None:
    """SIGUSR1 and notices requeue; cancelled, killed and stuck jobs do not."""
    run = _Interrupted(tmp_path, stopped_by, checkpoints)
    monkeypatch.setattr(Job, "run", run.run)
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)]
    result = run_in_slurm(run.job)
    assert run.waited == UNTIL_FREE
    assert result.exit_code == 75
    assert _lines(calls)[1:] == (["requeue 7"] if again else [])
    assert ("SLURM requeues job 7" in result.message) == again
    assert ("taken no checkpoint" in result.message) == (not again and not checkpoints)
    assert [event["event"] for event in run.directory.events()] == (["requeued"] if again else [])
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)] == handlers


@pytest.mark.usefixtures("calls")
def test_a_run_that_is_lost_for_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run of the job waits, since the former one may still run."""
    run = _Interrupted(tmp_path, "SIGTERM", 0)
    monkeypatch.setattr(Job, "run", run.run)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run_in_slurm(run.job)
    assert run.waited is None


def test_slurm_refuses(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of an interrupted run has the reason of SLURM's refusal in its message."""
    _scontrol(tmp_path, requeue="echo 'Invalid job id specified' >&2; exit 1")
    run = _Interrupted(tmp_path, "SIGUSR1", 1)
    monkeypatch.setattr(Job, "run", run.run)
    result = run_in_slurm(run.job)
    assert result.exit_code == 75
    assert "does not requeue job 7: Invalid job id specified" in result.message
    assert not list(run.directory.events())
    with pytest.raises(CriuError, match="Invalid job id"):
        SlurmJob.current().requeue()
    assert _lines(calls).count("requeue 7") == 2


def test_no_requeue(calls: Path, tmp_path: Path) -> None:
    """A SLURM job without requeue is refused before anything is started."""
    _scontrol(tmp_path, fields="Requeue=0")
    with pytest.raises(OptionError, match="submit it with --requeue"):
        run_in_slurm(Job(tmp_path / "job", ["true"]))
    assert not (tmp_path / "job").exists()
    assert len(_lines(calls)) == 1
