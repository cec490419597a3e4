"""The verbs for asyncio: the same arguments and results, awaited.

A hook may be a coroutine function; it runs in the task that awaits the verb. Cancelling the task
makes CRIU undo its work, as a deadline does, and ``CancelledError`` is raised after that. If the
call had already succeeded, the exception has the result in its attribute ``result``, and a note.
``asyncio.timeout`` and ``wait_for`` cancel the task, with the same effect.

A cancelled migration is undone on both sides, as at its deadline, and the ``CancelledError`` has a
note with its state. The cancellation takes effect between two steps, not while CRIU runs.
``should_continue`` and ``on_progress`` run on threads, not in the task.

Each verb runs on a separate thread, so that the event loop is not blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar

from ._calls import iterative_dump, verbs
from ._calls.call import CALL_RUNNER, Call
from ._calls.hook_invocation import HookInvocation
from ._calls.notification import Hook, Notification
from ._calls.request import Outcome
from ._pages import dedup as dedup_module
from ._pages import page_server as page_server_module
from ._support.unpatched import Lock, Thread
from .migration import migrate

__all__ = [
    "check",
    "cpuinfo_check",
    "cpuinfo_dump",
    "dedup",
    "dump",
    "dump_iters",
    "feature_check",
    "migrate_in",
    "migrate_out",
    "page_server",
    "page_server_child",
    "pre_dump",
    "restore",
    "restore_child",
    "version",
]

P = ParamSpec("P")
R = TypeVar("R")


class _VerbTask(Generic[R]):
    """A verb on its thread, and its synchronization with the task that awaits it."""

    def __init__(self, work: Callable[[], R]) -> None:
        self.turn = asyncio.Event()
        """Set when a hook has to be called, and when the verb has ended."""
        self._loop = asyncio.get_running_loop()
        self._work = work
        self._changing = Lock()
        self._call: Call | None = None
        self._invocation: HookInvocation | None = None
        self._give_up: Callable[[BaseException], None] | None = None
        self._cancelled: BaseException | None = None
        self._outcome: list[R] = []
        self._error: BaseException | None = None
        context = contextvars.copy_context()
        self._thread = Thread(target=context.run, args=(self._body,), name="criu verb")
        self._thread.start()

    # ---- the verb's thread ----

    def _body(self) -> None:
        CALL_RUNNER.set(self)
        try:
            self._outcome.append(self._work())
        except BaseException as error:
            self._error = error
        finally:
            self._wake()

    def run_to_end(self, call: Call) -> Outcome:
        """Wait for a call of the verb; the task calls its hook."""
        call.wake = self._wake
        with self._changing:
            if self._cancelled is not None:
                raise self._cancelled
            self._call = call
        call.start()
        return call.conclude()

    def take_over(self, cancel: Callable[[BaseException], None], hook: Hook | None) -> Hook | None:
        """Register a migration, which waits for its calls itself. Returns a hook for the task."""
        CALL_RUNNER.set(None)
        with self._changing:
            if self._cancelled is not None:
                raise self._cancelled
            self._give_up = cancel
        return None if hook is None else functools.partial(self._run_in_task, hook)

    def _run_in_task(self, hook: Hook, notification: Notification) -> object:
        invocation = self._invocation = HookInvocation(hook, notification)
        self._wake()
        try:
            return invocation.wait()
        finally:
            self._invocation = None

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.turn.set)

    # ---- the task ----

    def is_over(self) -> bool:
        """Whether the verb has returned or raised."""
        return bool(self._outcome) or self._error is not None

    async def answer(self) -> None:
        """Run the hook if a call waits for it."""
        invocation = self._invocation if self._call is None else self._call.invocation
        if invocation is not None:
            await invocation.run_async()

    def cancel(self, reason: BaseException) -> None:
        """Cancel the running call, and prevent further ones."""
        with self._changing:
            self._cancelled = reason
            if self._call is not None:
                self._call.cancel(reason)
            elif self._give_up is not None:
                invocation = self._invocation
                if invocation is None or not invocation.refuse(reason):
                    self._give_up(reason)

    def conclude(self) -> R:
        """Return the result of the verb, or raise its exception."""
        self._thread.join()
        if self._error is not None:
            late = self._cancelled
            if late is None or late is self._error:
                raise self._error
            for note in (str(self._error), *getattr(self._error, "__notes__", ())):
                late.add_note(note)
            raise late from self._error
        (result,) = self._outcome
        if self._cancelled is not None:
            raise verbs.too_late(self._cancelled, "call", result)
        return result


def _awaited(verb: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    @functools.wraps(verb)
    async def awaited(*args: P.args, **kwargs: P.kwargs) -> R:
        task = _VerbTask(functools.partial(verb, *args, **kwargs))
        while not task.is_over():
            try:
                await task.turn.wait()
                task.turn.clear()
                await task.answer()
            except BaseException as interruption:
                task.cancel(interruption)
                if isinstance(interruption, GeneratorExit):
                    break  # closed, perhaps after the end of the loop: it cannot await any more
        return task.conclude()

    awaited.__doc__ = f":func:`pycriu_native.{verb.__name__}`, awaited."
    awaited.__module__ = __name__
    return awaited


dump = _awaited(verbs.dump)
pre_dump = _awaited(verbs.pre_dump)
restore = _awaited(verbs.restore)
restore_child = _awaited(verbs.restore_child)
check = _awaited(verbs.check)
version = _awaited(verbs.version)
feature_check = _awaited(verbs.feature_check)
cpuinfo_dump = _awaited(verbs.cpuinfo_dump)
cpuinfo_check = _awaited(verbs.cpuinfo_check)
dedup = _awaited(dedup_module.dedup)
page_server = _awaited(page_server_module.page_server)
page_server_child = _awaited(page_server_module.page_server_child)
dump_iters = _awaited(iterative_dump.dump_iters)
migrate_out = _awaited(migrate.migrate_out)
migrate_in = _awaited(migrate.migrate_in)
