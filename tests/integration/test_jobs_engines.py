"""Jobs on engines: workers are killed or retired, or run a job twice; the output of each job is
exact.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from .support.hosts import OURS, cable, host
from .support.job_hosts import never_two
from .support.jobs import RunningJob, check_exact

needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="there is no distributed (extra dask)"
)

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="there is no ray")


def _run(program: str, what: str, job: RunningJob) -> list[dict[str, object]]:
    """The results that the program of an engine prints."""
    module = f"tests.integration.programs.{program.removesuffix('.py')}"
    words = [sys.executable, "-m", module, what, str(job.directory.path)]
    with open(job.place / "messages", "wb") as messages:
        done = subprocess.run(
            [*words, str(job.place / "finish"), *job.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            check=False,
            cwd=job.place,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "RAY_AUTH_MODE": "disabled",
            },
        )
    assert done.returncode == 0, job.messages()[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, list)
    return result


def _ended(results: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(each["state"], each["exit_code"]) for each in results]


@needs_dask
def test_a_worker_of_dask_is_killed(job: RunningJob, tmp_path: Path) -> None:
    """Dask restarts the task, and the job is resumed from its checkpoint."""
    assert _ended(_run("dask_jobs.py", "killed", job)) == [("ended", 0)]
    check_exact(job, tmp_path / "reference")
    status = job.directory.status()
    assert (status.resumed, status.restarted) == (1, 0)


@needs_dask
def test_a_worker_of_dask_is_retired(job: RunningJob, tmp_path: Path) -> None:
    """The plugin takes a last checkpoint, and the other worker resumes from it."""
    assert _ended(_run("dask_jobs.py", "retired", job)) == [("ended", 0)]
    check_exact(job, tmp_path / "reference")
    status = job.directory.status()
    assert (status.checkpoints, status.resumed, status.restarted) == (1, 1, 0)


@needs_dask
def test_two_tasks_of_one_job(job: RunningJob, tmp_path: Path) -> None:
    """The second one waits for the first, and returns its result."""
    results = _run("dask_jobs.py", "twice", job)
    assert _ended(results) == [("ended", 0)] * 2
    check_exact(job, tmp_path / "reference")
    assert job.events() == ["started", "ended"]


MACHINE = """
hostname "$0" && mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@"
"""


@needs_dask
def test_a_host_of_dask_is_lost(job: RunningJob, tmp_path: Path) -> None:
    """Two hosts with separate network, processes, mounts, host name and boot id: the job is resumed
    on the other host, and never runs twice at a time.
    """
    with contextlib.ExitStack() as stack:
        hosts = []
        for _ in range(2):
            there = stack.enter_context(host())
            scheduler, address = stack.enter_context(cable(OURS, there))
            boot = tmp_path / there.name
            boot.write_text(f"{uuid.uuid4()}\n")
            own = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts")
            prefix = [*there.prefix, *own, "sh", "-c", MACHINE, there.name, str(boot)]
            hosts.append({"prefix": prefix, "scheduler": scheduler, "address": address})
        with never_two(job.place):
            results = _run("dask_hosts.py", json.dumps(hosts), job)
    assert _ended(results) == [("ended", 0)]
    check_exact(job, tmp_path / "reference")
    status = job.directory.status()
    assert (status.resumed, status.restarted) == (1, 0)
    assert status.host in [each["prefix"][-2] for each in hosts]


ENDLESS = """
import sys
from pycriu_native.jobs import Job
from pycriu_native.jobs.dask import run_in_dask
run_in_dask(Job(sys.argv[1], ["sh", "-c", "kill -9 $$"]))
"""


@needs_dask
def test_no_end_of_interruptions(tmp_path: Path) -> None:
    """A task fails if its job is interrupted before each checkpoint."""
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, str(tmp_path / "job")],
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert re.search("CriuError: .*ended by SIGKILL.*no checkpoint was taken", last), done.stderr


@needs_ray
def test_a_worker_of_ray_is_killed(job: RunningJob, tmp_path: Path) -> None:
    """Ray restarts the task, and the job is resumed from its checkpoint; it never runs twice at a
    time.
    """
    with never_two(job.place):
        results = _run("ray_jobs.py", "killed", job)
    assert _ended(results) == [("ended", 0)]
    check_exact(job, tmp_path / "reference")
    status = job.directory.status()
    assert (status.resumed, status.restarted) == (1, 0)


def test_a_worker_of_a_pool_is_killed(job: RunningJob, tmp_path: Path) -> None:
    """The pool is broken, and the job ends with its worker; another pool resumes it."""
    assert _ended(_run("pool_jobs.py", "killed", job)) == [("ended", 0)]
    check_exact(job, tmp_path / "reference")
    status = job.directory.status()
    assert (status.resumed, status.restarted) == (1, 0)
