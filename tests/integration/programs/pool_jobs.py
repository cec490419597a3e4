"""A pool with one process that runs a job, is killed, and is followed by another one.

Called as ``dask_jobs.py`` is.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from pycriu_native.jobs import Job
from pycriu_native.jobs.directory import JobDirectory


def main(where: str, finish: Path, command: list[str]) -> None:
    """Run it."""
    directory = JobDirectory(where)
    job = Job(where, command, every=0.5, also=[str(finish.parent / "out" / "*")])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        future = pool.submit(job)
        while directory.status().checkpoints < 2 and not future.done():
            time.sleep(0.05)
        for process in multiprocessing.active_children():
            process.kill()
        assert isinstance(future.exception(), BrokenProcessPool)
    finish.touch()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(json.dumps([asdict(pool.submit(job).result())]))


if __name__ == "__main__":
    main(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
