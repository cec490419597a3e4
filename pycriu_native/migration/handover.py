"""The states of the process at the source, and the transitions between them.

From the final dump on, the process is frozen: in CRIU's ``post-dump`` notification, and for
post-copy also while CRIU serves its pages. It is ended after the final message of the destination:
``running`` (stop-and-copy, pre-copy), or ``complete`` after all memory has arrived (post-copy).
After a failure CRIU resumes it; if ``go`` was sent, not before the destination's copy has ended.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, NoReturn

from .._calls.call import Call
from .._support.unpatched import Event, Thread, sleep
from ..errors import CriuError, MigrationError
from . import image_transfer
from .common import MARGIN, Phases
from .control_channel import Channel
from .page_relay import PageRelay
from .watchdog import Watchdog


class State(Enum):
    """Which copy of the process may run."""

    HERE = "here"
    """Only the source's process may run. It resumes at once after a failure."""
    UNDECIDED = "undecided"
    """``go`` was sent: the copy at the destination may run, and may still be ended."""
    GIVEN_UP = "given up"
    """The destination's final message was received: only the copy at the destination may run."""
    KEPT = "kept"
    """The migration failed and no copy runs at the destination: the source's process may run."""


class HeldCall(Call):
    """A dump that is cancelled only after the destination has ended its copy, if it has one."""

    def __init__(self, request: Any, withdraw: Callable[[BaseException], None]) -> None:
        super().__init__(request)
        self.held = False
        self._withdraw = withdraw
        self._reason: BaseException | None = None

    def cancel(self, reason: BaseException) -> None:
        if not self.held or self.invocation is not None:
            super().cancel(reason)
            return
        self._reason = reason
        self._withdraw(reason)

    def cancel_deferred(self) -> None:
        """Carry out a deferred cancellation: the destination has no copy."""
        if self._reason is not None:
            super().cancel(self._reason)


class Handover:
    """The transfer of the right to run, from this host to the destination.

    Synchronization: ``withdraw`` may be called from any thread. The rest is for the thread of
    the hook, and for post-copy, after ``serve``, for a separate thread.
    """

    def __init__(
        self, channel: Channel, phases: Phases, *, watchdog: Watchdog, relay: PageRelay | None
    ) -> None:
        self._channel = channel
        self._phases = phases
        self._watchdog = watchdog
        self._relay = relay
        self.state = State.HERE
        self.peer_timeout = 0.0
        """The destination's ``peer_timeout``, in seconds."""
        self.frozen_at = 0.0
        """Start of the final dump, by the monotonic clock."""
        self.downtime = 0.0
        self.pid = 0
        """The root process, as numbered at the destination."""
        self.failure: BaseException | None = None
        """Why post-copy failed."""
        self._thread: Any = None
        # A restore can access memory before it is complete: CRIU then has to serve pages at once.
        self._released = Event() if relay is None else relay.requested

    # ---- the transitions ----

    def go(self) -> None:
        """HERE to UNDECIDED, when the copy is prepared. Returns when the copy runs."""
        self._require(State.HERE)
        self.pid = image_transfer.number(self._channel.expect("prepared"), "pid")
        self.state = State.UNDECIDED
        self._channel.send_message("go")
        self._released.set()
        self._channel.expect("running")
        self.downtime = time.monotonic() - self.frozen_at

    def give_up(self) -> None:
        """UNDECIDED to GIVEN_UP: the destination's final message was received."""
        self._require(State.UNDECIDED)
        self.state = State.GIVEN_UP
        # Without this message the destination is in doubt; the source is not.
        with contextlib.suppress(CriuError):
            self._channel.send_message("done", downtime=self.downtime)

    def keep(self, error: BaseException) -> None:
        """To KEPT, from every state. Returns when no copy runs at the destination."""
        may_run = self.state in (State.UNDECIDED, State.GIVEN_UP)
        if may_run and not (isinstance(error, MigrationError) and error.by_peer):
            with contextlib.suppress(CriuError):
                self._channel.send_message("failed", why=f"the source cancelled: {error!r}")
                while True:
                    self._channel.expect("running", "complete")
            if self._channel.refused is None:
                sleep(self.peer_timeout + MARGIN)
        self.state = State.KEPT

    def _require(self, state: State) -> None:
        if self.state is not state:
            raise AssertionError(f"the handover is {self.state.value}, not {state.value}")

    # ---- sequences of transitions ----

    def complete(self) -> None:
        """Stop-and-copy and pre-copy, in the hook: returns when the process can be ended."""
        try:
            self.go()
            self.give_up()
        except BaseException as error:
            self.keep(error)
            raise

    def serve(self, call: HeldCall) -> None:
        """Post-copy, in the hook: returns when CRIU has to serve pages; a thread continues."""
        assert self._relay is not None
        call.held = True
        self._relay.start(self._channel)
        self._watchdog.set_cleanup(
            [self._relay.ours.fileno()], abort_serving=self.peer_timeout + MARGIN
        )
        self._thread = Thread(
            target=self._serve, name="migration", args=(call, self._relay), daemon=True
        )
        self._thread.start()
        self._released.wait()
        if self.failure is not None:
            raise self.failure

    def _serve(self, call: HeldCall, relay: PageRelay) -> None:
        try:
            self.go()
            self._phases.enter("pages")
            self._channel.expect("complete")
            self.give_up()
            self._watchdog.set_cleanup(abort_serving=None)
            relay.finish()
        except BaseException as error:
            self.keep(error)
            self.failure = error
            relay.abort_serving()
            call.cancel_deferred()
        finally:
            self._released.set()

    def withdraw(self, reason: BaseException) -> None:
        """Request that the destination ends its copy."""
        with contextlib.suppress(CriuError):
            self._channel.send_message("failed", why=f"the source was interrupted: {reason!r}")

    def join(self) -> None:
        """Wait for the thread of post-copy, after the final message was received."""
        self._require(State.GIVEN_UP)
        if self._thread is not None:
            self._thread.join()

    def fail(self, error: BaseException) -> NoReturn:
        """Raise why the dump failed, once the thread of post-copy has ended."""
        failure = self.failure
        if self._thread is not None:
            if failure is None:
                self.withdraw(error)  # CRIU itself failed: the process has already resumed
            self._thread.join()
        if failure is not None and isinstance(error, CriuError):
            raise failure from error  # CRIU's error is a consequence of this one
        raise error
