"""Call: one libcriu call on its own thread (``own_thread.py``), and the thread that waits for it.

The call (``run.py``) is uninterrupted from the worker's start to its reaping. The caller's thread
waits, runs the hook, and may be interrupted: then CRIU undoes the call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar

from .._support.frozen_dataclass import replace
from .._support.light_typing import TYPE_CHECKING, Protocol
from .._support.no_fork import no_fork
from ..errors import CriuError
from .own_thread import OwnThread
from .request import Outcome, Request
from .run import Run

if TYPE_CHECKING:
    from .exchange import Exchange
    from .hook_invocation import HookInvocation
    from .notification import Hook, Notification
    from .run import Connect


class CallRunner(Protocol):
    """Another way to wait for calls: that of an asyncio task, or of the threads of a batch."""

    def run_to_end(self, call: Call) -> Outcome:
        """The counterpart of ``Call.wait``."""

    def take_over(self, cancel: Callable[[BaseException], None], hook: Hook | None) -> Hook | None:
        """For an operation of many calls, which waits for them itself.

        ``cancel`` cancels the operation. It calls the returned hook instead of ``hook``.
        """


CALL_RUNNER: ContextVar[CallRunner | None] = ContextVar("CALL_RUNNER", default=None)
"""How calls of this context are waited for; None: by ``Call.wait_with_hooks``."""


class Call(OwnThread):
    def __init__(self, request: Request) -> None:
        super().__init__(str(request.verb))
        self.request = request
        """The request."""
        self._outcome: Outcome | None = None
        self._exchange: Exchange | None = None
        self._cancelled: BaseException | None = None
        self._in_turn: AbstractContextManager[object] | None = None
        self._connect: Connect = request.via.connect
        self.invocation: HookInvocation | None = None
        """A notification that waits for the hook."""

    # ---- the caller's thread ----

    def wait(self) -> Outcome:
        """Start the call, run its hooks, and return its result or raise its exception."""
        runner = CALL_RUNNER.get()
        return self.wait_with_hooks() if runner is None else runner.run_to_end(self)

    def wait_with_hooks(self) -> Outcome:
        """:meth:`wait`, on this thread."""
        self.wait_to_end()
        return self.conclude()

    def take_turn(self) -> None:
        invocation = self.invocation  # the call's thread can remove it meanwhile
        if invocation is not None:
            invocation.run()

    @property
    def worker_pid(self) -> int:
        """The worker's pid while it works; 0 before, and if it is not a process of this library."""
        return 0 if self._exchange is None else self._exchange.connection.pid

    @property
    def is_undone(self) -> bool:
        """Whether the call is or will be undone."""
        exchange = self._exchange
        return self._cancelled is not None or (
            exchange is not None and exchange.stopped_by is not None
        )

    @property
    def socket(self) -> int:
        """The descriptor of the socket on which CRIU waits for replies; -1 before and after."""
        return -1 if self._exchange is None else self._exchange.connection.fd

    def is_over(self) -> bool:
        return self._outcome is not None or self._error is not None

    def run_here(
        self, turn: AbstractContextManager[object], connect: Connect | None = None
    ) -> Outcome:
        """Run the call on this thread, which no signal interrupts, without a hook.

        ``turn`` is held while CRIU works: everything is prepared before, the worker too, and the
        remaining work is done after its release. Waiting for it does not count as time of the call.
        ``connect`` replaces that of the ``via``.
        """
        self._in_turn = turn
        self._connect = connect or self._connect
        self.work_here()
        return self.conclude()

    def conclude(self) -> Outcome:
        """Return the result or raise the exception of a completed call."""
        self.join()
        late = self._cancelled
        if self._outcome is None:
            assert self._error is not None
            if late is not None and late is not self._error:
                raise late from self._error  # the call had failed before
            raise self._error
        if self._outcome.interrupted_by is None and late is not None:
            return replace(self._outcome, interrupted_by=late)
        return self._outcome

    def cancel(self, reason: BaseException) -> None:
        """Make CRIU undo the call; ``reason`` is raised after that."""
        invocation = self.invocation
        if invocation is not None and invocation.refuse(reason):
            return
        if self._cancelled is None:
            self._cancelled = reason  # it is raised; later ones are added to it as notes
        if self._exchange is not None:
            self._exchange.cancel(reason)  # too late if it is closed: see conclude()

    # ---- the call's thread ----

    def ask(self, notification: Notification) -> object:
        """Make the caller's thread run the hook; return its result or raise its exception."""
        with no_fork:
            from .hook_invocation import HookInvocation  # few calls have a hook

        hook = self.request.on_notify
        assert hook is not None
        invocation = self.invocation = HookInvocation(hook, notification)
        self.wake()
        try:
            return invocation.wait()
        finally:
            self.invocation = None

    def _work(self) -> None:
        request = self.request
        run = Run(
            request,
            self._connect,
            hook=None if request.on_notify is None else self.ask,
            turn=self._in_turn,
            cancelled=lambda: self._cancelled,
            on_exchange=self._attach,
        )
        try:
            self._outcome = run.run()
        except CriuError as error:  # some are raised by functions that do not know the call
            if error.verb is None:  # else the pid is that of another call, which a hook has made
                error.verb, error.pid = str(request.verb), request.pid
            raise

    def _attach(self, exchange: Exchange) -> None:
        """From now on a cancel goes to the exchange; an earlier one is passed to it."""
        self._exchange = exchange
        if self._cancelled is not None:
            exchange.cancel(self._cancelled)
