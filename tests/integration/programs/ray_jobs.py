"""Ray on this host, with a task that runs a job and whose worker is killed.

Called as ``dask_jobs.py`` is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import ray

from pycriu_native.jobs import Job, JobResult
from pycriu_native.jobs.directory import JobDirectory


def run(job: Job) -> JobResult:
    """The task."""
    return job.run(wait=None)


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def main(where: str, finish: Path, command: list[str]) -> None:
    """Run it."""
    directory = JobDirectory(where)
    job = Job(where, command, every=0.5, also=[str(finish.parent / "out" / "*")])
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as place:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=place,
        )
        try:
            future = ray.remote(max_retries=-1)(run).remote(job)
            while directory.status().checkpoints < 2:
                time.sleep(0.05)
            supervisor = directory.status().supervisor
            assert supervisor is not None
            os.kill(parent_of(parent_of(supervisor)), signal.SIGKILL)
            while directory.status().resumed < 1:
                time.sleep(0.05)
            finish.touch()
            print(json.dumps([asdict(ray.get(future))]))
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
