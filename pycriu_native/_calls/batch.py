"""Many dumps or restores at once, on any executor.

A job is a value: picklable, and called to be done. So a pool of threads runs it, a pool of
processes, or the executor of a cluster whose nodes have this library and see the images::

    done = dump_many(pids, lambda pid: CriuOpts(images_directory=f"/ckpt/{pid}"))
    failed = [each for each in done if each.error is not None]

Each job's result or error is kept with the job: one that fails stops no other. On threads of our
own, dumps and restores need no ``WorkerPool``: while some work, the next are made ready, and their
workers are started.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Sequence

from .._rollback.option import Files
from .._support.frozen_dataclass import dataclass, field
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
    from concurrent.futures import Executor, Future

    from .batch_threads import Job

__all__ = [
    "DumpJob",
    "JobOutcome",
    "RestoreJob",
    "dump_many",
    "restore_many",
    "run_many",
]

Progress = Callable[[int, int], object]
"""Called on the caller's thread with the number of jobs that are over, and of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpJob:
    """A dump to be done. It pickles if ``via`` does: ``None`` and a ``Worker`` do.

    It is of one process on one host. A job that runs on another host, in another pid namespace, or
    when the pid is another process's, raises ``ProcessMismatchError``. For a process of another
    host, read ``ProcessIdentity.of(pid)`` there, and make the job of it.
    """

    pid: Target
    """The process; the job keeps its number."""
    opts: CriuOpts
    via: Via | None = None
    deadline: float | None = None
    """Seconds for this call."""
    files: Files = None
    """As for :func:`pycriu_native.dump`."""
    include_caller: bool = False
    """Dump a tree that contains the process that made the job, or that runs it, if only itself."""
    process: ProcessIdentity | None = None
    """Which process that is; None: the one that has the pid when the job is made."""
    _holds_maker: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pid = number_of(self.pid)
        process = self.process or _look_up(self.pid)
        if process is not None and process.pid != pid:
            raise ValueError(f"pid={pid!r}: process has the pid {process.pid}")
        holds = (
            process is not None and process.start_time is not None and is_above(pid, os.getpid())
        )
        for name, value in (("pid", pid), ("process", process), ("_holds_maker", holds)):
            object.__setattr__(self, name, value)

    def __call__(self) -> DumpResult:
        """Do it; raises as :func:`pycriu_native.dump`."""
        target = self.pid if self.process is None else self.process
        if self._holds_maker and not self.include_caller:
            rule = (
                "the process that made this job is in this tree, and would be dumped and gone with "
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
    """The process that a job is about; None for what is no target, which the call refuses."""
    if isinstance(target, ProcessIdentity):
        return target
    if isinstance(target, Pidfd):
        return target.process()
    if not is_pid(target):
        return None
    return ProcessIdentity.of(target)


def _new_token() -> str:
    import uuid  # slow to import

    return uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreJob:
    """A restore to be done. It pickles if ``via`` does: ``None`` and a ``Worker`` do.

    It is done once. An engine runs a job again whose worker was lost, perhaps after the restore:
    then two hosts run the same process, on the same files. Each run therefore first makes a claim
    file in the images directory, ``pycriu-native.restore-TOKEN``, which names who has made it. A
    restore that fails removes it; any other end keeps it, and later runs of the same job raise
    ``RestoreClaimedError``. Another job, which has another token, may restore the same images.
    """

    opts: CriuOpts
    via: Via | None = None
    deadline: float | None = None
    """Seconds for this call."""
    files: Files = None
    """As for :func:`pycriu_native.restore`."""
    fence: bool = True
    """Make the claim file; the images directory must be writable, and the same for all runs."""
    token: str = field(default_factory=_new_token)
    """Which job this is: letters, digits and ``-``."""

    def __post_init__(self) -> None:
        plain = self.token.isascii() and all(each.isalnum() or each == "-" for each in self.token)
        if not (plain and 1 <= len(self.token) <= 64):
            raise ValueError(f"token={self.token!r}: 1 to 64 letters, digits and - are accepted")

    def __call__(self) -> RestoreResult:
        """Do it; raises as :func:`pycriu_native.restore`, and ``RestoreClaimedError``."""
        verbs.restore_request(
            self.opts, self.via, None, self.deadline, files=self.files
        )  # nothing is touched yet
        from .._integrity.restore_claim import claimed  # slow to import

        with claimed(self.opts, self.token) if self.fence else contextlib.nullcontext():
            return verbs.restore(self.opts, via=self.via, deadline=self.deadline, files=self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutcome(Generic[R]):
    """A job that is over."""

    index: int
    """Its place among the jobs, from 0."""
    job: Job[R]
    result: R | None = None
    """What it returned; None where it failed."""
    error: BaseException | None = None
    """What it raised, or why the executor did not run it; None where it was done."""

    def get(self) -> R:
        """The result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


def run_many(
    jobs: Iterable[Job[R]], *, executor: Executor | None = None, parallel: int | None = None
) -> Generator[JobOutcome[R], None, None]:
    """Run jobs, and yield each as it is over.

    ``executor`` is one of ``concurrent.futures``, or any other whose ``submit`` returns futures
    with ``add_done_callback``; it stays the caller's. None: threads of our own. ``parallel`` jobs
    run at the same time then (default: two for each processor that we may use, since CRIU's work is
    in processes of its own); of dumps and restores, so many have their CRIU work.

    Whoever stops in the middle, by an exception or by closing the iterator, has the jobs that
    have not begun cancelled; of threads of our own, those under way are waited for. What has
    been dumped by then stays dumped.
    """
    todo = list(jobs)
    if parallel is not None and (
        isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1
    ):
        raise ValueError(f"parallel={parallel!r}: a whole number of threads, 1 or more, is wanted")
    if executor is not None and parallel is not None:
        raise ValueError(f"parallel={parallel!r}: the executor that is given decides that")
    return _outcomes(todo, executor, parallel or 2 * len(os.sched_getaffinity(0)))


def _outcomes(
    todo: Sequence[Job[R]], executor: Executor | None, parallel: int
) -> Generator[JobOutcome[R], None, None]:
    from .batch_threads import on_executor, on_threads  # an import of the names does without

    if executor is not None:
        running = on_executor(executor, todo)
    else:
        ours = all(isinstance(job, DumpJob | RestoreJob) for job in todo)
        running = on_threads(todo, parallel, are_calls=ours)
    with contextlib.closing(running):
        for index, done in running:
            yield _finished(index, todo[index], done)


def _finished(index: int, job: Job[R], done: Future[R]) -> JobOutcome[R]:
    try:
        return JobOutcome(index=index, job=job, result=done.result())
    except BaseException as error:  # CancelledError is one, and what a job raised may be
        return JobOutcome(index=index, job=job, error=error)


def _all(
    jobs: Sequence[Job[R]],
    executor: Executor | None,
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
    executor: Executor | None = None,
    parallel: int | None = None,
    progress: Progress | None = None,
) -> list[JobOutcome[DumpResult]]:
    """Dump processes, each with the options that ``opts_for`` gives for its pid.

    Returns when all are over, in the order of ``pids``; raises nothing that a dump raises.
    Each needs an images directory of its own. A tree that contains the caller, the caller's own
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
    executor: Executor | None = None,
    parallel: int | None = None,
    progress: Progress | None = None,
) -> list[JobOutcome[RestoreResult]]:
    """Restore from images, one set for each value of options; as :func:`dump_many` otherwise.

    On an executor, which may run a job twice, each has a fence: see :class:`RestoreJob`.
    """
    fence = executor is not None
    jobs = [RestoreJob(opts=opts, via=via, deadline=deadline, fence=fence) for opts in options]
    return _all(jobs, executor, parallel, progress)
