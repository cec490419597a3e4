"""A client of Dask with two workers, each a process of its own, that runs a job.

Called with what happens to it, the job's directory and the file that ends its command, and the
words of the command. Prints its results as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distributed import Client, Future, LocalCluster

from pycriu_native.jobs import Job
from pycriu_native.jobs.dask import CheckpointPlugin, run_in_dask
from pycriu_native.jobs.directory import JobDirectory
from pycriu_native.jobs.job import UNTIL_FREE

PATIENCE = float(os.environ.get("PYCRIU_NATIVE_TEST_PATIENCE", "60"))


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition holds; returns its value."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen")


def worker_of(client: Client, future: Future) -> str:
    """The address of the worker that runs a task."""

    def look() -> str | None:
        running = client.processing()
        return next((worker for worker, keys in running.items() if future.key in keys), None)

    return str(until(look, "the start of the task"))


def main(what: str, where: str, finish: Path, command: list[str]) -> None:
    """Run it."""
    directory = JobDirectory(where)
    also = [str(finish.parent / "out" / "*")]
    every = 0.5 if what == "killed" else 3600
    job = Job(where, command, every=every, first=every, also=also)

    def has_output() -> bool:
        path = directory.path / "stdout"
        return path.exists() and path.stat().st_size > 1000

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(CheckpointPlugin())
        future = client.submit(run_in_dask, job, pure=False)
        futures = [future]
        worker = worker_of(client, future)
        if what == "killed":
            until(lambda: directory.status().checkpoints >= 2, "two checkpoints")
            os.kill(client.run(os.getpid, workers=[worker])[worker], signal.SIGKILL)
            until(lambda: directory.status().resumed == 1, "its resumption")
        elif what == "retired":
            until(has_output, "its output")
            client.retire_workers([worker])
            until(lambda: directory.status().resumed == 1, "its resumption")
            assert worker_of(client, future) != worker
        else:
            until(has_output, "its output")
            futures.append(client.submit(run_in_dask, job, pure=False))
            assert worker_of(client, futures[1]) != worker
            time.sleep(UNTIL_FREE * 1.5)  # longer than a run waits that does not wait for an end
            assert not futures[1].done()
        finish.touch()
        print(json.dumps([asdict(each) for each in client.gather(futures)]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
