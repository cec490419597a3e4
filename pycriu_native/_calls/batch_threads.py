"""The threads and turns of a batch: jobs are submitted, and yielded as they end."""

from __future__ import annotations

import functools
import os
import queue
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from .._transport.worker_factory import ForkServerCache
from .call import CALL_RUNNER, Call
from .notification import Hook
from .request import Outcome

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

Running = Generator[tuple[int, Future[R]], None, None]
"""The place of each job that is over, among all, and its future."""


class Job(Protocol[R_co]):
    """A callable without arguments."""

    def __call__(self) -> R_co: ...


def on_threads(todo: Sequence[Job[R]], parallel: int, *, are_calls: bool) -> Running[R]:
    """Run jobs on new threads; ``are_calls``: all are dumps and restores."""
    if not todo:
        return
    threads = parallel
    if are_calls:
        threads += min(parallel, len(os.sched_getaffinity(0)))  # they prepare the next ones
    with (
        _Here(parallel) as here,
        ThreadPoolExecutor(min(threads, len(todo)), "criu batch", CALL_RUNNER.set, (here,)) as ours,
    ):
        yield from on_executor(ours, todo)


def on_executor(executor: Executor, todo: Sequence[Job[R]]) -> Running[R]:
    """Run jobs on an executor; those that have not begun are cancelled at an early end."""
    # Looked up now: gevent may have replaced it since the import, with the threads that fill it.
    over: queue.SimpleQueue[tuple[int, Future[R]]] = queue.SimpleQueue()
    futures: list[Future[R]] = []
    try:
        for index, job in enumerate(todo):
            future = executor.submit(job)
            futures.append(future)
            future.add_done_callback(lambda done, index=index: over.put((index, done)))  # type: ignore[misc]
        for _ in todo:
            yield over.get()
    finally:
        for future in futures:
            future.cancel()


class _Here(ForkServerCache):
    """Runs a call on the thread that waits for it; CRIU works in ``turns`` calls at a time."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self._turn = _Turn(turns)

    def run_to_end(self, call: Call) -> Outcome:
        """The counterpart of ``Call.wait``."""
        request = call.request
        if request.on_notify is not None:
            return call.wait_with_hooks()
        if request.opts.config_file is not None:
            return call.run_here(self._turn)  # shell-job in it would need the caller's input
        return call.run_here(self._turn, functools.partial(self.connect, request.via))

    def take_over(self, cancel: Callable[[BaseException], None], hook: Hook | None) -> Hook | None:
        """A job that has begun is not cancelled, and its hook runs on its thread."""
        return hook


class _Turn:
    """A semaphore whose wait runs no Python code."""

    def __init__(self, turns: int) -> None:
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(turns):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *_: object) -> None:
        self._free.put(None)
