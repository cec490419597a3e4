"""What a call by a worker of a pool takes if it leaves out parts that its callers rely on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from pycriu_native import CriuOpts, WorkerPool, dump
from pycriu_native._calls import requirements, run
from pycriu_native._calls.call import CALL_RUNNER, Call
from pycriu_native._calls.request import Outcome

from .common import Row, Target, in_log, row, timed


class OnCallersThread:
    """Runs a call on the caller's thread: without hooks, and a signal handler can interrupt it."""

    def run_to_end(self, call: Call) -> Outcome:
        """Run the call."""
        return call.run_here(contextlib.nullcontext())

    def take_over(self, cancel: Callable[[BaseException], None], hook: Any) -> Any:
        """Operations of many calls are not measured."""
        raise NotImplementedError


@contextmanager
def on_callers_thread() -> Iterator[None]:
    """Calls on the caller's thread."""
    token = CALL_RUNNER.set(OnCallersThread())
    try:
        yield
    finally:
        CALL_RUNNER.reset(token)


class NoSafeguards:
    """Neither marks incomplete images nor repairs images, nor undoes what a killed CRIU leaves."""

    can_recover = False

    def __init__(self, *arguments: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


PARTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "checks": lambda: mock.patch.object(requirements, "check", return_value=None),
    "a thread": on_callers_thread,
    "safeguards": lambda: mock.patch.object(run, "Safeguards", NoSafeguards),
}


def measure_reduced(target: Target, directory: Path, times: int) -> list[Row]:
    """The time beyond CRIU's log of calls that leave out one part more each, in turns."""
    names = list(PARTS)
    ways = {
        f"a worker of a pool without {', '.join(names[:count])}": names[:count]
        for count in range(1, len(names) + 1)
    }
    beyond: dict[str, list[float]] = {way: [] for way in ways}
    with WorkerPool(2) as warm:
        for number in range(times):
            for index, (way, parts) in enumerate(ways.items()):
                images = directory / f"reduced-{number}-{index}"
                opts = CriuOpts(images_directory=images, leave_running=True, log_level=4)
                warm.wait_until_ready(10)
                time.sleep(0.01)
                with ExitStack() as reduced:
                    for part in parts:
                        reduced.enter_context(PARTS[part]())
                    taken = timed(lambda opts=opts: dump(target.pid, opts, via=warm))  # type: ignore[misc]
                beyond[way].append(taken - in_log(images / "dump.log"))
    return [row("beyond CRIU's log", "ms", samples, by=way) for way, samples in beyond.items()]
