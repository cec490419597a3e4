"""The verbs for asyncio: the same arguments and results, awaited.

A hook may be a coroutine function. Cancelling the task makes CRIU undo its work, as a deadline
does, and the ``CancelledError`` comes out once that is done; if CRIU had finished by then, it
carries the result in its attribute ``result`` and says so in a note. ``asyncio.timeout`` and
``wait_for`` work the same way.

Each call has a thread of its own while it runs, so the event loop never blocks on CRIU.
"""

from __future__ import annotations

import asyncio
import contextlib

from . import verbs
from ._dataclass import replace
from ._exchange import Hook
from ._reach import Via
from ._request import Outcome, Request
from ._session import Call
from .opts import CriuOpts
from .results import CheckResult, DumpResult, Features, RestoreResult, Version

__all__ = ["check", "dump", "feature_check", "pre_dump", "restore", "restore_child", "version"]


async def dump(
    pid: int | None,
    opts: CriuOpts,
    *,
    via: Via | None = None,
    on_notify: Hook | None = None,
    deadline: float | None = None,
) -> DumpResult:
    """:func:`pycriu_native.dump`, awaited."""
    request = await asyncio.to_thread(verbs.dump_request, pid, opts, via, on_notify, deadline)
    outcome = await _drive(request)
    return verbs.dump_result(request, outcome)


async def pre_dump(
    pid: int,
    opts: CriuOpts,
    *,
    via: Via | None = None,
    on_notify: Hook | None = None,
    deadline: float | None = None,
) -> DumpResult:
    """:func:`pycriu_native.pre_dump`, awaited."""
    return await dump(
        pid, replace(opts, pre_dump=True), via=via, on_notify=on_notify, deadline=deadline
    )


async def restore(
    opts: CriuOpts,
    *,
    via: Via | None = None,
    on_notify: Hook | None = None,
    deadline: float | None = None,
) -> RestoreResult:
    """:func:`pycriu_native.restore`, awaited."""
    request = await asyncio.to_thread(verbs.restore_request, opts, via, on_notify, deadline)
    return verbs.restore_result(request, await _drive(request))


async def restore_child(
    opts: CriuOpts,
    *,
    via: Via | None = None,
    on_notify: Hook | None = None,
    deadline: float | None = None,
) -> RestoreResult:
    """:func:`pycriu_native.restore_child`, awaited."""
    request = await asyncio.to_thread(
        verbs.restore_request, opts, via, on_notify, deadline, sibling=True
    )
    return verbs.restore_result(request, await _drive(request))


async def check(*, via: Via | None = None, deadline: float | None = None) -> CheckResult:
    """:func:`pycriu_native.check`, awaited."""
    return await asyncio.to_thread(verbs.check, via=via, deadline=deadline)


async def version(*, via: Via | None = None, deadline: float | None = None) -> Version:
    """:func:`pycriu_native.version`, awaited."""
    return await asyncio.to_thread(verbs.version, via=via, deadline=deadline)


async def feature_check(*, via: Via | None = None, deadline: float | None = None) -> Features:
    """:func:`pycriu_native.feature_check`, awaited."""
    return await asyncio.to_thread(verbs.feature_check, via=via, deadline=deadline)


async def _drive(request: Request) -> Outcome:
    """See a call through on the event loop; the counterpart of ``Call.wait``."""
    loop = asyncio.get_running_loop()
    turn = asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed under us
            loop.call_soon_threadsafe(turn.set)

    call = Call(request, wake)
    call.start()
    while not call.is_over():
        try:
            await turn.wait()
            turn.clear()
            question = call.question
            if question is not None:
                await question.put_and_await()
        except BaseException as interruption:
            call.cancel(interruption)
    return call.conclude()
