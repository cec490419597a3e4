"""Work that starts processes, on a thread in which no handler of a signal runs.

Python runs handlers of signals in the main thread, between any two instructions, and one that
raises (Ctrl-C) would leave a process or descriptor without an owner, if it has just been created.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from _thread import get_native_id
from collections.abc import Callable
from typing import Generic, TypeVar

from .._calls.call import CALL_RUNNER, MOST_INTERRUPTIONS, Call
from .._calls.notification import Hook
from .._calls.request import Outcome
from .._native.ffi import native
from .._support.unpatched import Event, Lock, Thread, threads_are_replaced
from ..errors import CriuError

Result = TypeVar("Result")


def uninterrupted(function: Callable[[], Result], undo: Callable[[Result], object]) -> Result:
    """Call a function; if the caller is interrupted, undo it, and raise the exception.

    Each call of CRIU that the function makes is cancelled. If it returns nevertheless, ``undo`` is
    called with its result. Other threads than the main thread are not interrupted: there the
    function is called directly. So it is where gevent or eventlet has replaced functions of the
    standard library, such as ``os.close``, which wait for the event loop of the calling thread.
    """
    if threads_are_replaced() or get_native_id() != os.getpid():
        return function()
    return _Work(function, undo).run()


class _Work(Generic[Result]):
    """A function on another thread; the methods are those of :class:`.Call`."""

    def __init__(self, function: Callable[[], Result], undo: Callable[[Result], object]) -> None:
        self._function = function
        self._undo = undo
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._reason: BaseException | None = None
        self._call: Call | None = None
        self._over = Event()
        self._begins = Lock()
        """Acquired once: by the thread, which then works, or by the caller, if it is interrupted
        before."""
        context = contextvars.copy_context()
        self._thread = Thread(lambda: context.run(self._body), "start of a copy")

    # ---- the caller's thread ----

    def run(self) -> Result:
        """Wait for the result, or raise the exception of the function or an interruption."""
        while True:
            try:
                while not self._over.is_set() or self._thread.is_alive():
                    self._start()
                    self._over.wait()
                    self._thread.join()
                break
            except BaseException as interruption:
                if self._begins.acquire(blocking=False):
                    raise  # the function has not been called, and will not be
                self._cancel_surely(interruption)
        if self._reason is not None:
            for result in self._results:  # it was ready when the interruption came
                self._undo(result)
            if self._error is None or self._error is self._reason:
                raise self._reason
            raise self._reason from self._error
        if self._error is not None:
            raise self._error
        return self._results.pop()

    def _start(self) -> None:
        if self._thread.ident is None:
            try:
                self._thread.start()
            except RuntimeError as error:
                if "can't start" not in str(error):
                    raise
                raise CriuError("no thread could be started for the start of a copy") from error

    def _cancel_surely(self, reason: BaseException) -> None:
        for _ in range(MOST_INTERRUPTIONS):
            try:
                self._reason = self._reason or reason
                call = self._call
                return None if call is None else call.cancel(self._reason)
            except BaseException as further:
                reason = further
        raise reason

    # ---- the function's thread ----

    def _body(self) -> None:
        native.pn_block_signals()  # they wake the caller's thread
        if not self._begins.acquire(blocking=False):
            return
        if CALL_RUNNER.get() is None:
            CALL_RUNNER.set(self)
        try:
            result = self._function()
            if self._reason is None:
                self._results.append(result)
            else:
                self._undo(result)
        except BaseException as error:
            self._error = error
        finally:
            self._over.set()

    def run_to_end(self, call: Call) -> Outcome:
        """Wait for a call, which is cancelled if the caller is interrupted."""
        self._call = call
        try:
            if self._reason is not None:
                call.cancel(self._reason)
            if call.request.on_notify is None:
                return call.run_here(contextlib.nullcontext())
            return call.wait_with_hooks()
        finally:
            self._call = None

    def take_over(self, cancel: Callable[[BaseException], None], hook: Hook | None) -> Hook | None:
        """The function makes no operation of many calls."""
        return hook
