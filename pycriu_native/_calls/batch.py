"""Many dumps or restores at once, on any executor.

A job is a picklable value, and a call of it runs it. So it can run on a pool of threads or
processes, or on the executor of a cluster whose nodes have this library and the images::

    done = dump_many(pids, lambda pid: CriuOpts(images_directory=f"/ckpt/{pid}"))
    failed = [each for each in done if each.error is not None]

The result or error of each job is in its ``JobOutcome``: a failure does not stop other jobs.
Without an executor, dumps and restores need no ``WorkerPool``: the next ones are prepared, and
their workers started, while others run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Sequence

from .._rollback.option import Files
from .._support.frozen_dataclass import dataclass, field
from .._support.lazy import futures
from .._support.light_typing import TYPE_CHECKING, Generic, TypeVar
from .._system.process_identity import Pidfd, ProcessIdentity, Target, is_pid, number_of
from .._system.process_tree import is_above
from .._transport.base import Via
from ..errors import OptionError, Problem
from ..options.criu_opts import CriuOpts
from ..results import DumpResult, RestoreResult
from . import verbs

R = TypeVar("R")

if TYPE_CHECKING:
    from .batch_threads import Job
else:
    Job = Generic  # for hints: its module is slow to import

Progress = Callable[[int, int], object]
"""Called on the caller's thread with the number of jobs that have ended, and of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpJob:
    """A dump as a job. It can be pickled if ``via`` can: ``None`` and a ``Worker`` can.

    It is of one process on one host. If it runs on another host or in another pid namespace, or if
    another process has the pid, it raises ``ProcessMismatchError``. For a process of another
    host, read ``ProcessIdentity.of(pid)`` there, and use that as ``pid``.
    """

    pid: Target
    """The process; the job stores its pid."""
    opts: CriuOpts
    via: Via | None = None
    deadline: float | None = None
    """Seconds for this call."""
    files: Files = None
    """As for :func:`pycriu_native.dump`."""
    include_caller: bool = False
    """Permit a tree that contains the process that made the job, or the one that runs it."""
    process: ProcessIdentity | None = None
    """The identity of the process; None: of the one that has the pid when the job is made."""
    _holds_maker: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pid = number_of(self.pid)
        if self.process is not None and not isinstance(self.process, ProcessIdentity):
            raise ValueError(f"process={self.process!r}: a ProcessIdentity or None is accepted")
        process = self.process or _look_up(self.pid)
        if process is not None and process.pid != pid:
            raise ValueError(f"pid={pid!r}: process has the pid {process.pid}")
        holds = (
            process is not None and process.start_time is not None and is_above(pid, os.getpid())
        )
        for name, value in (("pid", pid), ("process", process), ("_holds_maker", holds)):
            object.__setattr__(self, name, value)

    def __call__(self) -> DumpResult:
        """Run it; raises as :func:`pycriu_native.dump`."""
        target = self.pid if self.process is None else self.process
        if self._holds_maker and not self.include_caller:
            rule = (
                "the process that made this job is in this tree, and would be dumped and end with "
                "it: set include_caller=True"
            )
            raise OptionError(
                [Problem("pid", self.pid, rule)], verb="dump", pid=number_of(self.pid)
            )
        return verbs.dump(
            target,
            self.opts,
            include_caller=self.include_caller,
            via=self.via,
            deadline=self.deadline,
            files=self.files,
        )


def _look_up(target: Target) -> ProcessIdentity | None:
    """The process of a job; None for a value that is no target, which the call refuses."""
    if isinstance(target, ProcessIdentity):
        return target
    if isinstance(target, Pidfd):
        return target.process()
    if not is_pid(target):
        return None
    return ProcessIdentity.of(target)


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreJob:
    """A restore as a job. It can be pickled if ``via`` can: ``None`` and a ``Worker`` can.

    It restores once. If the worker of a job is lost, an engine runs the job again, perhaps after
    the restore: two hosts would run the same process, on the same files. Each run therefore first
    creates a claim file in the images directory, ``pycriu-native.restore-TOKEN``, with the host and
    pid of the run. A restore that fails removes it; after any other end, and if the processes have
    run (``ResumedError``), it remains, and later runs of the job raise ``RestoreClaimedError``.
    Another job has another token, and can restore the same images.
    """

    opts: CriuOpts
    via: Via | None = None
    deadline: float | None = None
    """Seconds for this call."""
    files: Files = None
    """As for :func:`pycriu_native.restore`."""
    fence: bool = True
    """Create the claim file; the images directory must be writable, and the same for all runs."""
    token: str = field(default_factory=lambda: os.urandom(16).hex())
    """The name of the job in the claim: letters, digits and ``-``."""

    def __post_init__(self) -> None:
        token: object = self.token
        if not (
            isinstance(token, str)
            and token.isascii()
            and all(each.isalnum() or each == "-" for each in token)
            and 1 <= len(token) <= 64
        ):
            raise ValueError(f"token={token!r}: 1 to 64 letters, digits and - are accepted")

    def __call__(self) -> RestoreResult:
        """Run it; raises as :func:`pycriu_native.restore`, and ``RestoreClaimedError``."""
        # Checked before the claim file is created.
        verbs.restore_request(self.opts, self.via, None, self.deadline, files=self.files)
        from .._integrity.restore_claim import claimed  # slow to import

        with claimed(self.opts, self.token) if self.fence else contextlib.nullcontext():
            return verbs.restore(self.opts, via=self.via, deadline=self.deadline, files=self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutcome(Generic[R]):
    """The result or error of a job."""

    index: int
    """The index of the job, from 0."""
    job: Job[R]
    result: R | None = None
    """Its return value; None if it failed."""
    error: BaseException | None = None
    """Its exception, or that of the executor that did not run it; None on success."""

    def get(self) -> R:
        """The result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


def run_many(
    jobs: Iterable[Job[R]],
    *,
    executor: futures.Executor | None = None,
    parallel: int | None = None,
) -> Generator[JobOutcome[R], None, None]:
    """Run jobs, and yield each as it ends.

    ``executor`` is one of ``concurrent.futures``, or any other whose ``submit`` returns futures
    with ``add_done_callback``; it is not shut down. None: threads of this function, with
    ``parallel`` jobs at the same time (default: two for each processor that is available, since
    CRIU works in other processes); of dumps and restores, so many CRIUs work at the same time.

    An exception, or closing the iterator, cancels the jobs that have not begun; without an
    executor, those that run are waited for. Dumps that are complete by then stay complete.
    """
    todo = list(jobs)
    if parallel is not None and (
        isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1
    ):
        raise ValueError(f"parallel={parallel!r}: a whole number of threads, 1 or more, is needed")
    if executor is not None and parallel is not None:
        raise ValueError(f"parallel={parallel!r}: not together with executor, which decides that")
    return _outcomes(todo, executor, parallel or 2 * len(os.sched_getaffinity(0)))


def _outcomes(
    todo: Sequence[Job[R]], executor: futures.Executor | None, parallel: int
) -> Generator[JobOutcome[R], None, None]:
    from .batch_threads import on_executor, on_threads  # slow to import

    if executor is not None:
        running = on_executor(executor, todo)
    else:
        ours = all(isinstance(job, DumpJob | RestoreJob) for job in todo)
        running = on_threads(todo, parallel, are_calls=ours)
    with contextlib.closing(running):
        for index, done in running:
            yield _finished(index, todo[index], done)


def _finished(index: int, job: Job[R], done: futures.Future[R]) -> JobOutcome[R]:
    try:
        return JobOutcome(index=index, job=job, result=done.result())
    except BaseException as error:  # CancelledError is one, and a job can raise one
        return JobOutcome(index=index, job=job, error=error)


def _all(
    jobs: Sequence[Job[R]],
    executor: futures.Executor | None,
    parallel: int | None,
    progress: Progress | None,
) -> list[JobOutcome[R]]:
    finished: dict[int, JobOutcome[R]] = {}
    for each in run_many(jobs, executor=executor, parallel=parallel):
        finished[each.index] = each
        if progress is not None:
            progress(len(finished), len(jobs))
    return [finished[index] for index in range(len(jobs))]


def dump_many(
    pids: Iterable[Target],
    opts_for: Callable[[int], CriuOpts],
    *,
    include_caller: bool = False,
    via: Via | None = None,
    deadline: float | None = None,
    executor: futures.Executor | None = None,
    parallel: int | None = None,
    progress: Progress | None = None,
) -> list[JobOutcome[DumpResult]]:
    """Dump processes, each with the options that ``opts_for`` returns for its pid.

    Returns when all have ended, in the order of ``pids``; exceptions of dumps are in the outcomes.
    Each needs another images directory. A tree that contains the caller, the caller's own
    included, is refused unless ``include_caller`` is set. A ``Pidfd`` whose process has ended is
    refused at once, with ``NoSuchProcessError``. The other arguments are those of :func:`dump`,
    for each call, and of :func:`run_many`.
    """
    jobs = [
        DumpJob(
            pid=target,
            opts=opts_for(number_of(target)),
            via=via,
            deadline=deadline,
            include_caller=include_caller,
        )
        for target in pids
    ]
    return _all(jobs, executor, parallel, progress)


def restore_many(
    options: Iterable[CriuOpts],
    *,
    via: Via | None = None,
    deadline: float | None = None,
    executor: futures.Executor | None = None,
    parallel: int | None = None,
    progress: Progress | None = None,
) -> list[JobOutcome[RestoreResult]]:
    """Restore images, one set for each value of options; otherwise as :func:`dump_many`.

    On an executor, which may run a job twice, ``fence`` is set: see :class:`RestoreJob`.
    """
    fence = executor is not None
    jobs = [RestoreJob(opts=opts, via=via, deadline=deadline, fence=fence) for opts in options]
    return _all(jobs, executor, parallel, progress)
