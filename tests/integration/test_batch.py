"""Concurrent dumps and restores on several kinds of executors."""

from __future__ import annotations

import contextvars
import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuOpts,
    DumpJob,
    DumpResult,
    ImagesError,
    JobOutcome,
    NoSuchProcessError,
    OptionError,
    PidInUseError,
    RestoreClaimedError,
    RestoreJob,
    Worker,
    WorkerPool,
    dump,
    dump_many,
    restore_many,
    run_many,
)
from pycriu_native._calls import call as call_module
from pycriu_native._calls import conversation
from pycriu_native._integrity.restore_claim import claimed

from .conftest import Spawn
from .support.processes import Target

NOBODY = 2**22 - 1


def many(spawn: Spawn, count: int) -> list[Target]:
    """Processes that each store a different number."""
    return [spawn(f"serve(number=lambda: {number})") for number in range(count)]


def test_round_trip(spawn: Spawn, tmp_path: Path) -> None:
    """All processes are dumped and restored with their data, and progress is reported
    to the end.
    """
    targets = many(spawn, 6)
    message: list[tuple[int, int]] = []

    def opts(pid: int) -> CriuOpts:
        return CriuOpts(images_directory=tmp_path / f"images-{pid}")

    pids = [target.pid for target in targets]
    with WorkerPool(2) as warm:
        dumped = dump_many(
            pids, opts, via=warm, parallel=3, progress=lambda done, all: message.append((done, all))
        )
        assert [each.get().pid for each in dumped] == pids
        for target in targets:
            target.reap()
        restored = restore_many([opts(pid) for pid in pids], via=warm, parallel=3)
    assert [each.get().pid for each in restored] == pids
    assert [target.ask("number") for target in targets] == list(range(6))
    assert message == [(done, 6) for done in range(1, 7)]


def test_one_fails(spawn: Spawn, tmp_path: Path) -> None:
    """The exception of a failed job is in its outcome unchanged, and the other jobs are done."""
    first, second = many(spawn, 2)
    done = dump_many(
        [first.pid, NOBODY, second.pid],
        lambda pid: CriuOpts(images_directory=tmp_path / str(pid), leave_running=True),
    )
    assert [each.index for each in done] == [0, 1, 2]
    assert done[1].result is None
    with pytest.raises(NoSuchProcessError):
        done[1].get()
    assert isinstance(done[1].job, DumpJob)
    assert done[1].job.pid == NOBODY
    assert done[0].error is None
    assert done[2].error is None
    assert first.runs_on()
    assert second.runs_on()


def test_a_refusal_is_an_error_of_its_job(tmp_path: Path) -> None:
    """Invalid options of one job do not stop the others."""
    (done,) = restore_many([CriuOpts(images_directory=tmp_path / "none")])
    assert isinstance(done.error, OptionError)


def test_in_other_processes(spawn: Spawn, tmp_path: Path) -> None:
    """Jobs, results and exceptions can be pickled, so an executor of processes can run them."""
    target = spawn()
    opts = CriuOpts(images_directory=tmp_path / "images", leave_running=True)
    good = DumpJob(pid=target.pid, opts=opts, via=Worker())
    bad = DumpJob(pid=NOBODY, opts=opts)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        done = sorted(run_many([good, bad], executor=executor), key=lambda each: each.index)
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
    assert done[0].get().pid == target.pid
    assert isinstance(done[1].error, NoSuchProcessError)
    assert done[1].error.verb == "dump"
    assert target.runs_on()
    restore = RestoreJob(opts=opts, deadline=3)
    assert pickle.loads(pickle.dumps((good, restore))) == (good, restore)


def test_a_restore_job_is_done_once(spawn: Spawn, tmp_path: Path) -> None:
    """A second run of the same job does not restore a second process; a failed run can
    be repeated.
    """
    target = spawn()
    directory = tmp_path / "images"
    dump(target.pid, CriuOpts(images_directory=directory))
    pid_taken = RestoreJob(opts=CriuOpts(images_directory=directory))
    again = pickle.loads(pickle.dumps(pid_taken))
    before = sorted(directory.iterdir())
    with pytest.raises(PidInUseError):  # it is a zombie still
        pid_taken()
    assert [each for each in directory.iterdir() if "restore-" in each.name] == []
    target.reap()
    assert pid_taken().pid == target.pid
    claim = directory / f"pycriu-native.restore-{again.token}"
    assert {*directory.iterdir()} - {*before} >= {claim}
    with pytest.raises(RestoreClaimedError, match=f"pid {os.getpid()} on {os.uname().nodename}"):
        again()
    assert target.runs_on()
    dump(target.pid, CriuOpts(images_directory=directory))
    with pytest.raises(RestoreClaimedError):
        again()
    claim.unlink()
    assert again().pid == target.pid
    assert target.runs_on()


def test_a_claim_that_cannot_be_made(tmp_path: Path) -> None:
    """Without a claim nothing is restored, unless the job has no fence."""
    (tmp_path / "pycriu-native.restore-1").write_text("")  # the process that created it has ended
    opts = CriuOpts(images_directory=tmp_path)
    with pytest.raises(RestoreClaimedError, match="not in the claim"):
        RestoreJob(opts=opts, token="1")()
    with pytest.raises(ImagesError, match="no images"):
        RestoreJob(opts=opts, token="1", fence=False)()
    with pytest.raises(ImagesError, match="no images"):
        RestoreJob(opts=opts, token="2")()
    assert [each.name for each in tmp_path.iterdir()] == ["pycriu-native.restore-1"]
    odd: list[Any] = ["../x", "", "x" * 65, None, 5]
    for token in odd:
        with pytest.raises(ValueError, match="token"):
            RestoreJob(opts=opts, token=token)


def test_a_claim_that_was_removed(tmp_path: Path) -> None:
    """The error of the restore is raised, and not that of the removal."""
    opts = CriuOpts(images_directory=tmp_path)

    def restore_without_success() -> None:
        with claimed(opts, "1"):
            (tmp_path / "pycriu-native.restore-1").unlink()
            raise LookupError("of the restore")

    with pytest.raises(LookupError, match="of the restore"):
        restore_without_success()


class Later(Executor):
    """An executor that runs jobs on request, in the requested order."""

    def __init__(self) -> None:
        self.asked: list[tuple[Future[Any], Any]] = []

    def submit(self, job: Any, /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.asked.append((future, job))
        if len(self.asked) == 3:
            for done, body in reversed(self.asked):
                done.set_result(body())
        return future


def test_as_they_are_over() -> None:
    """Results are yielded in the order of completion, with the futures of any executor."""
    done = list(run_many([lambda n=n: n for n in range(3)], executor=Later()))
    # The third future is done before a callback can be added.
    assert [each.get() for each in done] == [1, 0, 2]
    assert [each.index for each in done] == [1, 0, 2]


def test_stopping_in_the_middle() -> None:
    """Jobs that have not started are not started; the caller's executor is not shut down."""
    begun: list[int] = []
    closed = threading.Event()

    def job(number: int) -> None:
        if number > 0:
            closed.wait()
        begun.append(number)

    with ThreadPoolExecutor(1) as executor:
        running = run_many([partial(job, number) for number in range(9)], executor=executor)
        assert next(running).error is None
        running.close()
        closed.set()
        assert executor.submit(os.getpid).result() == os.getpid()
    assert len(begun) <= 2  # the first, and the one that had begun meanwhile


def test_a_cancelled_job() -> None:
    """The outcome of a job that the executor cancels is an error."""
    submitted = threading.Semaphore(0)

    class Observed(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
            future = super().submit(*arguments, **options)
            submitted.release()
            return future

    with Observed(1) as executor:

        def shut_down() -> None:
            for _ in range(2):  # else the second could be refused instead
                submitted.acquire()
            executor.shutdown(wait=False, cancel_futures=True)

        jobs = run_many([shut_down, os.getpid], executor=executor)
        first, second = sorted(jobs, key=lambda each: each.index)
    assert first.error is None
    assert type(second.error).__name__ == "CancelledError"


def test_none_at_all() -> None:
    """Without jobs the result is empty."""
    assert dump_many([], lambda pid: CriuOpts()) == []


@pytest.mark.parametrize("parallel", [0, -1, True, 1.5])
def test_how_many(parallel: Any) -> None:
    """An invalid number of threads is refused before a job starts."""
    with pytest.raises(ValueError, match="parallel="):
        run_many([os.getpid], parallel=parallel)


def test_either_an_executor_or_a_number() -> None:
    """An executor and a number of threads cannot both be given."""
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="executor"):
        run_many([os.getpid], executor=executor, parallel=2)


def test_finished() -> None:
    """An outcome can be compared and printed."""
    one = JobOutcome(index=0, job=os.getpid, result=1)
    assert one == JobOutcome(index=0, job=os.getpid, result=1)
    assert "result=1" in repr(one)


# ---- on threads of our own ----


def test_no_more_processes_than_the_limit(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next jobs are prepared, but at most the given number of CRIU processes works
    at a time.
    """
    at_work: list[int] = []
    most: list[int] = []
    converse = conversation.converse

    def counted(*arguments: Any) -> Any:
        at_work.append(0)
        most.append(len(at_work))
        try:
            return converse(*arguments)
        finally:
            at_work.pop()

    monkeypatch.setattr(conversation, "converse", counted)
    targets = many(spawn, 5)
    for parallel in (1, 2):
        most.clear()
        done = dump_many(
            [target.pid for target in targets],
            lambda pid, parallel=parallel: CriuOpts(  # type: ignore[misc]
                images_directory=tmp_path / f"{parallel}-{pid}", leave_running=True
            ),
            parallel=parallel,
        )
        assert [each.error for each in done] == [None] * 5
        assert len(most) == 5
        assert max(most) <= parallel


def test_a_thread_is_left_as_it_was(spawn: Spawn, tmp_path: Path) -> None:
    """A call blocks signals while it runs; afterwards the thread has its previous signal mask."""
    target = spawn()

    def job() -> tuple[DumpResult, set[int]]:
        done = dump(target.pid, CriuOpts(images_directory=tmp_path / "a", leave_running=True))
        return done, set(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    (over,) = run_many([job])
    done, blocked = over.get()
    assert done.pid == target.pid
    assert blocked == signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_hook_in_a_job(spawn: Spawn, tmp_path: Path) -> None:
    """A job with a hook runs it on the job's thread."""
    target = spawn()
    received: list[threading.Thread] = []

    def job() -> threading.Thread:
        opts = CriuOpts(images_directory=tmp_path / "a", leave_running=True)
        dump(target.pid, opts, on_notify=lambda _: received.append(threading.current_thread()))
        return threading.current_thread()

    (over,) = run_many([job])
    assert set(received) == {over.get()}


def test_the_deadline_starts_with_the_call(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadline and duration of a call start when the call is allowed to run."""
    target = spawn()
    later = 0.0
    monotonic = time.monotonic

    class Turn:
        """A turn for which a job waits an hour."""

        def __enter__(self) -> None:
            nonlocal later
            later = 3600.0

        def __exit__(self, *_: object) -> None:
            pass

    class CallRunner:
        """The runner of this thread's calls."""

        def run_to_end(self, call: call_module.Call) -> Any:
            return call.run_here(Turn())

        def take_over(self, cancel: Any, hook: Any) -> Any:
            raise AssertionError("this is no migration")

    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + later)
    opts = CriuOpts(images_directory=tmp_path / "a", leave_running=True)
    context = contextvars.copy_context()
    context.run(call_module.CALL_RUNNER.set, CallRunner())
    done = context.run(lambda: dump(target.pid, opts, deadline=600))
    assert done.duration < 600
