"""Work that starts processes, on a thread in which no handler of a signal runs.

The functions of this package create namespaces, descriptors and threads beside the calls of CRIU.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import time
from _thread import get_native_id
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .._calls.call import CALL_RUNNER, Call
from .._calls.notification import Hook
from .._calls.own_thread import OwnThread
from .._calls.request import Outcome
from .._native.ffi import native
from .._support.unpatched import UNTIL_SIGNALS, readable

Result = TypeVar("Result")


def uninterrupted(
    verb: str, function: Callable[[], Result], undo: Callable[[Result], object]
) -> Result:
    """Call a function; if the caller is interrupted, undo it, and raise the exception.

    Each call of CRIU that the function makes is cancelled, and its waits by
    :func:`readable_or_interrupted` end. If it returns nevertheless, ``undo`` is called with its
    result. Other threads than the main thread are not interrupted: there the function is called
    directly.
    """
    if get_native_id() != os.getpid():
        return function()
    work = Work(verb, function, undo)
    try:
        work.wait_to_end()
        if work.reason is None and work.results:
            return work.results[0]  # until the return, no signal's handler can run
    except BaseException as stop:
        if work.is_prevented:
            raise
        work.reason = work.reason or stop
    try:
        return work.conclude()
    except BaseException:
        if work.results:  # interrupted again, before the result was undone
            return work.conclude()
        raise


def interruption() -> BaseException | None:
    """The exception that interrupts the caller of the present function, if any."""
    work = CALL_RUNNER.get()
    return work.reason if isinstance(work, Work) else None


def check_interrupted() -> None:
    """Raise :func:`interruption`, if any."""
    if (reason := interruption()) is not None:
        raise reason


def readable_or_interrupted(*fds: int, seconds: float | None) -> bool:
    """Whether one of these descriptors can be read, or is at its end, within ``seconds``.

    Raises as :func:`check_interrupted`.
    """
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        remaining = UNTIL_SIGNALS if until is None else until - time.monotonic()
        if readable(*fds, seconds=min(remaining, UNTIL_SIGNALS)):
            return True
        check_interrupted()
        if remaining <= 0:
            return False


@contextlib.contextmanager
def signals_of_caller() -> Iterator[None]:
    """Do not block signals in this context, in which a program is started that inherits that."""
    work = CALL_RUNNER.get()
    if not isinstance(work, Work):
        yield
        return
    native.pn_set_signals(work.signals)
    try:
        yield
    finally:
        native.pn_block_signals()


class Work(OwnThread, Generic[Result]):
    """A function on another thread."""

    def __init__(
        self, verb: str, function: Callable[[], Result], undo: Callable[[Result], object]
    ) -> None:
        super().__init__(verb)
        self._function = function
        self._undo = undo
        self.results: list[Result] = []
        """The result of the function, if it has returned one."""
        self.reason: BaseException | None = None
        """The exception that interrupts the caller."""
        self._call: Call | None = None
        self._context = contextvars.copy_context()

    # ---- the caller's thread ----

    def is_over(self) -> bool:
        """Whether the function has returned or raised."""
        return bool(self.results) or self._error is not None

    def cancel(self, reason: BaseException) -> None:
        """Cancel the present call and all later ones."""
        self.reason = self.reason or reason
        call = self._call
        if call is not None:
            call.cancel(self.reason)

    def conclude(self) -> Result:
        """The result; or raise the exception of the function or of an interruption."""
        if self.reason is None and self._error is None:
            return self.results[0]
        if self.results:  # it was ready when the interruption came
            Work[object](self._verb, self.undo_result, id).wait_to_end(surely=True)
        if self.reason is None or self._error is self.reason:
            assert self._error is not None
            raise self._error
        raise self.reason from self._error

    # ---- the function's thread ----

    def _work(self) -> None:
        self._context.run(self._called)

    def _called(self) -> None:
        if CALL_RUNNER.get() is None:
            CALL_RUNNER.set(self)
        try:
            result = self._function()
        finally:
            del self._function  # with what it refers to, such as a zygote
            CALL_RUNNER.set(None)
        self.results.append(result)
        if self.reason is not None:
            self.undo_result()
            raise self.reason

    def undo_result(self) -> None:
        """Undo the result, if there is one; of several threads only one does that."""
        try:
            result = self.results.pop()
        except IndexError:
            return
        self._undo(result)

    def run_to_end(self, call: Call) -> Outcome:
        """Wait for a call, which is cancelled if the caller is interrupted."""
        self._call = call
        try:
            if self.reason is not None:
                call.cancel(self.reason)
            if call.request.on_notify is None:
                return call.run_here(contextlib.nullcontext())
            return call.wait_with_hooks()
        finally:
            self._call = None

    def take_over(self, cancel: Callable[[BaseException], None], hook: Hook | None) -> Hook | None:
        """The function makes no operation of many calls."""
        return hook
