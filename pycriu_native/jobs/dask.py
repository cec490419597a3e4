"""Jobs as tasks of Dask (extra ``[dask]``).

``client.submit(run_in_dask, job, pure=False)`` runs a job on a worker. When the worker is lost,
Dask starts the task on another one, which resumes the job. With
``client.register_plugin(CheckpointPlugin())``, a worker takes last checkpoints before it is closed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from ..errors import CriuError
from .control import request_stop
from .directory import JobDirectory, State
from .job import Job, JobResult

try:
    from distributed import Reschedule, WorkerPlugin
except ImportError as error:
    raise ImportError(
        "pycriu_native.jobs.dask needs distributed: pip install 'pycriu-native[dask]'"
    ) from error

_LOGGER = logging.getLogger("pycriu_native.jobs")


_running: set[JobDirectory] = set()
"""The directories of the jobs that run in this process, one for each run."""


def run_in_dask(job: Job) -> JobResult:
    """Run a job as a task. Dask restarts an interrupted task, on this or another worker.

    While the job runs elsewhere, such as on a worker that Dask considers lost, the task waits, so
    that the job never runs twice; a second task of the job returns the same result. Raises as
    ``Job.run``, and ``CriuError`` if the job was interrupted before this run took a checkpoint,
    since it could be restarted endlessly.
    """
    directory = JobDirectory(job.directory)
    before = directory.status().checkpoints
    _running.add(directory)
    try:
        result = job.run(wait=None)
    finally:
        _running.discard(directory)
    if result.state is State.INTERRUPTED:
        if directory.status().checkpoints == before:
            raise CriuError(f"{directory.path}: {result.message}; no checkpoint was taken")
        raise Reschedule
    return result


@dataclass
class CheckpointPlugin(WorkerPlugin):
    """Takes last checkpoints of a worker's jobs when the worker is closed or retired.

    All of them begin at the same time. If the worker is killed, its jobs continue from their last
    regular checkpoints. The time limit of Dask's nanny for the end of a worker must be sufficient.
    """

    timeout: float = 60.0
    """Seconds to wait for the last checkpoints."""
    name: str = "pycriu-native-jobs"
    """The name of the plugin for Dask."""

    async def teardown(self, worker: object) -> None:
        await asyncio.gather(*(self._stop(each) for each in list(_running)))

    async def _stop(self, directory: JobDirectory) -> None:
        try:
            await asyncio.to_thread(request_stop, directory, self.timeout)
        except CriuError as error:
            _LOGGER.warning("no last checkpoint of %s: %s", directory.path, error)
