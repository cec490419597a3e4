"""Jobs in batch scripts: time limits, preemption, requeueing and cancelling; each ends exactly."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pycriu_native.jobs import State
from pycriu_native.jobs.directory import JobDirectory

from ..integration.support.job_hosts import never_two
from ..integration.support.processes import children_of, eventually
from .batch import BatchJob
from .cluster import Cluster

AT_ONCE = "--signal=B:USR1@59"
"""With a limit of one minute: SIGUSR1 when SLURM looks at the limit first, within half a minute."""


def test_time_limit(batch: BatchJob, tmp_path: Path) -> None:
    """SIGUSR1 before the limit: a last checkpoint, and SLURM starts the same job again."""
    number = batch.submit("--time=1", AT_ONCE)
    batch.until_resumed(1)
    assert batch.job.directory.status().restarted == 0
    batch.until_resumed(2)
    steps = batch.finish(tmp_path / "reference")
    assert steps > 0
    assert batch.events().count("requeued") == 2
    assert f"SLURM requeues job {number}" in batch.output()
    assert "Restarts=2" in batch.cluster.job(number)


def test_time_limit_without_a_signal(batch: BatchJob, tmp_path: Path) -> None:
    """SIGTERM to all processes at the limit: the next job resumes from a checkpoint."""
    where = str(batch.place / "job")
    first = batch.submit("--time=1", run=("--dir", where))
    batch.until_state("RUNNING")
    batch.until_state("TIMEOUT")
    assert batch.job.directory.status().state is State.INTERRUPTED
    assert "requeued" not in batch.events()
    batch.submit("--time=5", run=("--dir", where))
    batch.until_resumed(1)
    batch.finish(tmp_path / "reference")
    assert batch.cluster.state(first) == "TIMEOUT"


def test_preempted(batch: BatchJob, tmp_path: Path) -> None:
    """SIGUSR1 at the beginning of the time that a partition grants: a last checkpoint."""
    batch.submit("--time=10", "--partition=low", "--signal=B:USR1@10")
    batch.until_checkpoints()
    other = _preempting(batch)
    batch.until_resumed(1)
    assert batch.cluster.state(other) == "COMPLETED"
    status = batch.job.directory.status()
    assert "requeued" in batch.events()
    assert status.restarted == 0
    batch.finish(tmp_path / "reference")


def test_preempted_at_once(batch: BatchJob, tmp_path: Path) -> None:
    """SIGTERM to all processes: SLURM queues the job again, and it resumes from a checkpoint."""
    batch.submit("--time=10", "--partition=lowest")
    batch.until_checkpoints()
    _preempting(batch)
    batch.until_resumed(1)
    assert "requeued" not in batch.events()
    batch.finish(tmp_path / "reference")


def _preempting(batch: BatchJob) -> str:
    """Submit a job that takes the node from the other; its number."""
    script = batch.place / "urgent"
    script.write_text("#!/bin/sh\n:\n")
    return batch.cluster.submit(script, "--partition=high", "--time=1", "--output=/dev/null")


def test_requeued_by_hand(batch: BatchJob, tmp_path: Path) -> None:
    """``scontrol requeue`` while it runs: it resumes from a checkpoint."""
    number = batch.submit("--time=10")
    batch.until_checkpoints()
    batch.cluster.client("scontrol", "requeue", number, user=batch.user)
    batch.until_resumed(1)
    batch.finish(tmp_path / "reference")


def test_cancelled(batch: BatchJob, tmp_path: Path) -> None:
    """``scancel`` ends it, and it is not requeued; the next job resumes from there."""
    where = str(batch.place / "job")
    number = batch.submit("--time=10", AT_ONCE.replace("59", "1"), run=("--dir", where))
    batch.until_checkpoints()
    batch.cluster.client("scancel", number, user=batch.user)
    batch.until_state("CANCELLED")
    eventually(lambda: not batch.job.directory.is_busy(), "the end of the supervisor")
    assert batch.job.directory.status().state is State.INTERRUPTED
    assert "requeued" not in batch.events()
    assert not batch.cluster.client("squeue", "-h")
    batch.submit("--time=10", run=("--dir", where))
    batch.until_resumed(1)
    batch.finish(tmp_path / "reference")


def test_without_a_checkpoint(batch: BatchJob) -> None:
    """A run that has taken no checkpoint is not requeued, since this could repeat endlessly."""
    number = batch.submit("--time=10", run=("--every", "1h", "--first", "1h", "--grace", "0s"))
    eventually(lambda: batch.job.directory.status().state is State.RUNNING, "its start")
    batch.cluster.client("scancel", "--batch", "--signal=USR1", number, user=batch.user)
    batch.until_state("FAILED")
    assert "is not requeued: this run has taken no checkpoint" in batch.output()
    assert "ExitCode=75:0" in batch.cluster.job(number)


def test_that_cannot_be_requeued(batch: BatchJob) -> None:
    """A SLURM job that cannot be requeued is refused before anything is started."""
    batch.submit("--time=1", "--no-requeue")
    batch.until_state("FAILED")
    assert "cannot be requeued: submit it with --requeue" in batch.output()
    assert not batch.job.directory.path.exists()


@pytest.mark.parametrize("what", ["lost", "cut off"])
def test_a_node(batch: BatchJob, tmp_path: Path, what: str) -> None:
    """SLURM queues the job of a lost node again, and the other node resumes it from the storage.
    The job of a node that only lost its connection continues, and is not started a second time.
    """
    here, there = batch.place / "here", batch.place / "there"
    for each in (here, there, batch.place / "storage"):
        each.mkdir()
        os.chown(each, batch.user, batch.user)
    storage = ("--storage", str(batch.place / "storage"), "--lease", "15", "--dir", str(here))
    with batch.cluster.second_node(there, here) as slurmd, never_two(batch.job.place):
        number = batch.submit("--time=10", "--partition=both", run=storage)
        batch.job.directory = JobDirectory(there)
        batch.until_checkpoints(3)
        batch.cluster.resume_node()
        batch.job.directory = JobDirectory(here)
        if what == "lost":
            slurmd.kill()
            batch.until_resumed(1)
        else:
            [first] = children_of(slurmd.pid)
            os.kill(first, signal.SIGSTOP)
            batch.until_event("busy")
            batch.job.directory = JobDirectory(there)
        batch.finish(tmp_path / "reference")
        assert "Restarts=1" in batch.cluster.job(number)


def test_the_node_of_the_cluster(cluster: Cluster) -> None:
    """SLURM's own view of its node."""
    assert "PreemptMode=REQUEUE" in cluster.client("scontrol", "show", "partition", "low")
