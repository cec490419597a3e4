"""The states of the process at the source, and the transitions between them.

From the final dump on, the process is frozen: in CRIU's ``post-dump`` notification, and for
post-copy also while CRIU serves its pages. It is ended after the final message of the destination:
``running`` (stop-and-copy, pre-copy), or ``complete`` after all memory has arrived (post-copy).
After a failure CRIU resumes it; if ``go`` was sent, not before the destination's copy has ended.

The transitions run on threads that no signal handler interrupts, since an exception between two of
them could resume the process while the copy runs. This process can also be killed between two of
them: the watchdog has the actions for that before the messages ``go`` and ``done`` are sent.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from .._calls.call import Call
from .._calls.exchange import ACCEPT
from .._calls.notification import Notification
from .._support.unpatched import Event, Lock, Thread, sleep
from ..enums import Notify
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

    def __init__(self, request: Any, handover: Handover) -> None:
        super().__init__(request)
        self.held = False
        self._handover = handover
        self._reason: BaseException | None = None

    def ask(self, notification: Notification) -> object:
        """Run the hook; after that of ``post-dump`` decide, on this thread, who continues."""
        returned = super().ask(notification)
        if notification.action is Notify.POST_DUMP:
            self._handover.after_dump(self)
        return returned

    def cancel(self, reason: BaseException) -> None:
        if not self.held or self.invocation is not None:
            super().cancel(reason)
            return
        self._reason = reason  # before the destination can answer
        if not self._handover.withdraw(reason):
            super().cancel(reason)  # CRIU can no longer undo the dump: it is raised after it

    def cancel_deferred(self) -> None:
        """Carry out a deferred cancellation: the destination has no copy."""
        if self._reason is not None:
            super().cancel(self._reason)


@dataclass(eq=False)
class Handover:
    """The transfer of the right to run, from this host to the destination.

    Synchronization: ``withdraw`` may be called from any thread. The rest is for the thread of
    the call, and in post-copy, after ``after_dump``, for a separate thread.
    """

    channel: Channel
    phases: Phases
    watchdog: Watchdog
    relay: PageRelay | None

    def __post_init__(self) -> None:
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
        self._deciding = Lock()
        self._withdrawn: BaseException | None = None
        # A restore can access memory before it is complete: CRIU then has to serve pages at once.
        self._released = Event() if self.relay is None else self.relay.requested

    # ---- the transitions ----

    def await_copy(self) -> None:
        """Wait, in HERE, until the copy is prepared."""
        self._require(State.HERE)
        self.pid = image_transfer.number(self.channel.expect("prepared"), "pid")

    def go(self) -> None:
        """HERE to UNDECIDED, when the copy is prepared. Returns when the copy runs."""
        self._require(State.HERE)
        self.state = State.UNDECIDED
        self.channel.send_message("go")
        self._released.set()
        self.channel.expect("running")
        self.downtime = time.monotonic() - self.frozen_at

    def give_up(self, **cleanup: Any) -> None:
        """UNDECIDED to GIVEN_UP: the destination's final message was received.

        Raises the reason if the source has withdrawn before. ``cleanup`` is for the watchdog.
        """
        with self._deciding:
            self._require(State.UNDECIDED)
            if self._withdrawn is not None:
                raise self._withdrawn
            self.state = State.GIVEN_UP
        self.watchdog.set_cleanup(**cleanup)
        # Without this message the destination is in doubt; the source is not.
        with contextlib.suppress(CriuError):
            self.channel.send_message("done", downtime=self.downtime)

    def keep(self, error: BaseException) -> None:
        """To KEPT, unless the process was given up. Returns when the destination has no copy."""
        self._require(State.HERE, State.UNDECIDED, State.KEPT)
        may_run = self.state is State.UNDECIDED
        if may_run and not (isinstance(error, MigrationError) and error.by_peer):
            with contextlib.suppress(CriuError):
                self.channel.send_failed(f"the source cancelled: {error!r}")
                while True:
                    self.channel.expect("running", "complete")
            if self.channel.refused is None:
                sleep(self.peer_timeout + MARGIN)
        self.state = State.KEPT

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise AssertionError(f"the handover is {self.state.value}, not {states[0].value}")

    # ---- sequences of transitions ----

    def after_dump(self, call: HeldCall) -> None:
        """At ``post-dump``, when the images are sent: returns if CRIU may continue."""
        call.held = True
        if self.relay is None:
            self._complete(call)
        else:
            self._serve(call, self.relay)

    def _complete(self, call: HeldCall) -> None:
        """Stop-and-copy and pre-copy: returns when the process can be ended."""
        try:
            self.await_copy()
            self.watchdog.set_cleanup([call.socket], hold=self.peer_timeout + MARGIN)
            self.go()
            self.give_up(accept=ACCEPT.hex())
        except BaseException as error:
            self.keep(error)
            call.cancel_deferred()
            raise

    def _serve(self, call: HeldCall, relay: PageRelay) -> None:
        """Post-copy: returns when CRIU has to serve pages; a thread continues."""
        relay.start(self.channel)
        self.watchdog.set_cleanup([relay.ours.fileno()], abort_serving=self.peer_timeout + MARGIN)
        self._thread = Thread(
            target=self._complete_serving, name="migration", args=(call, relay), daemon=True
        )
        self._thread.start()
        self._released.wait()
        if self.failure is not None:
            raise self.failure

    def _complete_serving(self, call: HeldCall, relay: PageRelay) -> None:
        try:
            self.await_copy()
            fds = [relay.ours.fileno(), call.socket]
            self.watchdog.set_cleanup(fds, abort_serving=self.peer_timeout + MARGIN)
            self.go()
            self.phases.enter("pages")
            self.channel.expect("complete")
            self.give_up(abort_serving=None)
            relay.finish()
        except BaseException as error:
            self.keep(error)
            self.failure = error
            relay.abort_serving()
            call.cancel_deferred()
        finally:
            self._released.set()

    def withdraw(self, reason: BaseException) -> bool:
        """Request that the destination ends its copy. Returns False if the process was given up."""
        with self._deciding:
            if self.state is State.GIVEN_UP:
                return False
            self._withdrawn = reason
        with contextlib.suppress(CriuError):
            self.channel.send_failed(f"the source was interrupted: {reason!r}")
        return True

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
