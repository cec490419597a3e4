"""A client of Dask whose workers are on hosts of their own; the one that runs a job is killed.

Called with the hosts as JSON (for each the words before its command, the address of the scheduler
as it sees it, and its own address), the job's directory, the file that ends its command, and the
words of the command. Prints the results as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from distributed import Client, LocalCluster

from pycriu_native.jobs import Job
from pycriu_native.jobs.dask import run_in_dask
from pycriu_native.jobs.directory import JobDirectory

from .dask_jobs import until, worker_of

WORKER = ("-m", "distributed.cli.dask_worker", "--no-nanny", "--no-dashboard", "--nthreads", "1")


def main(where: str, finish: Path, hosts: list[dict[str, str]], command: list[str]) -> None:
    """Run it."""
    directory = JobDirectory(where)
    job = Job(where, command, every=0.5, also=[str(finish.parent / "out" / "*")])
    started: dict[str, subprocess.Popen[bytes]] = {}
    with (
        LocalCluster(n_workers=0, host="0.0.0.0", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for each in hosts:
            scheduler = f"tcp://{each['scheduler']}:{cluster.scheduler.port}"
            words = [*each["prefix"], sys.executable, *WORKER, "--host", each["address"], scheduler]
            started[each["address"]] = subprocess.Popen(words, stdout=sys.stderr)
        try:
            client.wait_for_workers(len(hosts))
            future = client.submit(run_in_dask, job, pure=False)
            first = worker_of(client, future)
            until(lambda: directory.status().checkpoints >= 2, "two checkpoints")
            (address,) = (each for each in started if f"//{each}:" in first)
            started[address].kill()
            until(lambda: directory.status().resumed == 1, "its resumption")
            assert worker_of(client, future) != first
            finish.touch()
            print(json.dumps([asdict(future.result())]))
        finally:
            for process in started.values():
                process.kill()
                process.wait()


if __name__ == "__main__":
    main(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[1]), sys.argv[4:])
