"""The source's side of a migration: dump, send, and give the process up on the last word.

The process stands frozen from the final dump on, held in CRIU's ``post-dump`` notification (all
images are written by then, and the network is locked), and for post-copy in CRIU's serving of
pages after it. It is given up only when the destination has said its last word: that the
process runs (stop-and-copy, pre-copy), or that all memory has come (post-copy). Whatever else
happens, CRIU is made to let it run on; but if the destination had been told to go ahead, only
once it has said that it ended its copy, or has had the time to find out and do that.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from .._calls import requirements, verbs
from .._calls.call import Call
from .._calls.exchange import Hook, Notification
from .._calls.iterative_dump import More, Round, ShrinkingRounds, round_opts
from .._calls.progress import memory_of, size_of_pages
from .._support.unpatched import Event, Thread, sleep
from .._system.process_identity import Target, number_of
from .._system.process_tree import process_tree
from .._transport.base import Via
from ..enums import Notify
from ..errors import CriuError, MigrationError
from ..options.criu_opts import CriuOpts
from ..options.values import PageServer
from ..results import DumpResult, RestoreStatistics
from . import image_transfer
from .common import (
    MARGIN,
    MigrationMode,
    MigrationResult,
    Phases,
    Workspace,
    for_criu,
    has_wide_counts,
    seconds,
)
from .control_channel import Channel, Message
from .page_relay import PageRelay
from .watchdog import Watchdog

UNTIL_REPORTED = 5.0
"""Seconds that the destination gets for its numbers, once all is done."""


class Source:
    """A process on its way out."""

    def __init__(
        self,
        target: Target,
        opts: CriuOpts,
        *,
        mode: MigrationMode,
        room: Workspace,
        channel: Channel,
        relay: PageRelay | None,
        warden: Watchdog,
        phases: Phases,
        via: Via,
        on_notify: Hook | None,
        should_continue: More | None,
    ) -> None:
        self._target = target
        self._pid = number_of(target)
        self._opts = for_criu(opts, images_directory=None)
        self._mode = mode
        self._room = room
        self._channel = channel
        self._relay = relay
        self._watchdog = warden
        self._via = via
        self._on_notify = on_notify
        self._more = ShrinkingRounds() if should_continue is None else should_continue
        self.phases = phases
        self.image_bytes = 0
        self._shipped = self._to_ship = 0
        self._memory = 0
        self._their_silence = 0.0
        self._numbers = 0
        self._frozen_at = 0.0
        self._downtime = 0.0
        self._went = False
        """The destination was told to go ahead: from now on its copy may run."""
        self._given_up = False
        """Its last word was heard: from now on ours must not run."""
        self._their_pid = 0
        self.failure: BaseException | None = None
        self._call: _HeldCall | None = None
        self._watcher: Any = None
        self._released = Event() if relay is None else relay.asked

    def measure(self) -> tuple[str, int, int | None]:
        """Phase, bytes done, bytes to do."""
        phase = self.phases.name
        if phase in ("dump", "pre-dump"):
            done = size_of_pages(f"{self._room.path}/{self._numbers}", parents=False)
            return phase, done, None if self._mode.lazy and phase == "dump" else self._memory
        if phase in ("images", "images of rounds"):
            return phase, self.image_bytes - self._shipped, self._to_ship
        if phase == "pages" and self._relay is not None:
            return phase, self._relay.moved, max(self._relay.moved, self._memory - self._to_ship)
        return phase, 0, None

    # ---- the caller's thread ----

    def run(self) -> MigrationResult:
        """Migrate."""
        self.phases.enter("hello")
        self._memory = memory_of(process_tree(self._pid))
        lazy = self._mode.lazy
        version = requirements.program_version(self._via)
        self._channel.tell(
            "hello", mode=str(self._mode), criu=str(version), wide=has_wide_counts(version)
        )
        self._their_silence = seconds(self._channel.expect("hello"), "peer_timeout")
        if self._mode.rounds:
            self._send_rounds()
        self.phases.enter("dump")
        changes: dict[str, Any] = {}
        if lazy:
            assert self._relay is not None
            server = PageServer(fd=self._relay.theirs.fileno())
            changes = {"lazy_pages": True, "page_server": server}
        request = verbs.dump_request(
            self._target, self._next_round(**changes), self._via, self._hook, None
        )
        self._call = _HeldCall(request, self._ask_back)
        try:
            outcome = self._call.wait()
            dumped = verbs.dump_result(request, outcome)
        except BaseException as error:
            self._raise(error)
        assert self._given_up
        if self._watcher is not None:
            self._watcher.join()
        return self._result(dumped)

    def _send_rounds(self) -> None:
        while True:
            number = self._numbers + 1
            self.phases.enter("pre-dump")
            result = verbs.pre_dump(
                self._target, self._next_round(), via=self._via, on_notify=self._on_notify
            )
            self._ship("images of rounds")
            if not self._more(Round(number=number, result=result)):
                return

    def _next_round(self, **changes: Any) -> CriuOpts:
        self._numbers += 1
        opts = round_opts(self._opts, self._room.path, self._numbers, track=self._mode.rounds)
        return for_criu(opts, **changes)

    def _ship(self, phase: str) -> None:
        self.phases.enter(phase)
        directory = f"{self._room.path}/{self._numbers}"
        self._shipped, self._to_ship = self.image_bytes, image_transfer.size_of(directory)
        image_transfer.send(self._channel, directory, self._numbers, self._count)

    def _count(self, size: int) -> None:
        self.image_bytes += size

    def _hook(self, notification: Notification) -> None:
        first = notification.action is Notify.PRE_DUMP
        if first:
            self._frozen_at = time.monotonic()
        if self._on_notify is not None:
            self._on_notify(notification)
        if notification.action is Notify.POST_DUMP:
            self._hand_over()

    def _hand_over(self) -> None:
        """Send what was dumped, and hold the process until the destination has its place ready."""
        self._ship("images")
        self.phases.enter("restore")
        self._channel.tell("restore", lazy=self._mode.lazy)
        if not self._mode.lazy:
            try:
                self._until_it_runs()
                self._give_up()
            except BaseException as error:
                self._settle(error)
                raise
            return
        assert self._relay is not None
        assert self._call is not None
        self._call.held = True
        self._relay.start(self._channel)
        self._watchdog.set_cleanup(
            [self._relay.ours.fileno()], abort_serving=self._their_silence + MARGIN
        )
        self._watcher = Thread(target=self._watch, name="migration", daemon=True)
        self._watcher.start()
        # A restore may touch memory before it is ready: CRIU then has to serve at once.
        self._released.wait()
        if self.failure is not None:
            raise self.failure

    def _ask_back(self, reason: BaseException) -> None:
        """The caller was interrupted: have the destination give up first."""
        with contextlib.suppress(CriuError):
            self._channel.tell("failed", why=f"the source was interrupted: {reason!r}")

    # ---- on the watcher's thread for post-copy, in the hook otherwise ----

    def _until_it_runs(self) -> None:
        self._their_pid = image_transfer.number(self._channel.expect("prepared"), "pid")
        self._went = True
        self._channel.tell("go")
        self._released.set()
        self._channel.expect("running")
        self._downtime = time.monotonic() - self._frozen_at

    def _give_up(self) -> None:
        self._given_up = True
        with contextlib.suppress(CriuError):  # the destination then is in doubt, we are not
            self._channel.tell("done", downtime=self._downtime)

    def _watch(self) -> None:
        assert self._relay is not None
        assert self._call is not None
        try:
            self._until_it_runs()
            self.phases.enter("pages")
            self._channel.expect("complete")
            self._give_up()
            self._watchdog.set_cleanup(abort_serving=None)
            self._relay.finish()
        except BaseException as error:
            self._settle(error)
            self.failure = error
            self._relay.abort_serving()
            self._call.detach()
        finally:
            self._released.set()

    def _settle(self, error: BaseException) -> None:
        """Return when no copy runs at the destination."""
        if not self._went or (isinstance(error, MigrationError) and error.by_peer):
            return
        with contextlib.suppress(CriuError):
            self._channel.tell("failed", why=f"the source gave up: {error!r}")
            while True:
                self._channel.expect("running", "complete")
        if self._channel.refused is None:
            sleep(self._their_silence + MARGIN)

    # ---- the end ----

    def _raise(self, error: BaseException) -> None:
        known = self.failure
        if self._watcher is not None:
            if known is None:
                self._ask_back(error)  # CRIU failed by itself: the process runs on already
            self._watcher.join()
        if known is not None and isinstance(error, CriuError):
            raise known from error  # CRIU's own words are about how it was told
        raise error

    def _result(self, dumped: DumpResult) -> MigrationResult:
        self.phases.enter("report")
        restored = None
        with contextlib.suppress(CriuError, TypeError, ValueError):
            restored = _statistics(self._channel.expect("report", within=UNTIL_REPORTED))
        self.phases.finish()
        return MigrationResult(
            pid=self._their_pid,
            mode=self._mode,
            images=self._room.told,
            image_bytes=self.image_bytes,
            page_bytes=0 if self._relay is None else self._relay.moved,
            downtime=self._downtime,
            duration=self.phases.total,
            phases=self.phases.seconds,
            dump=dumped.statistics,
            restore=restored,
        )


class _HeldCall(Call):
    """A dump whose cancel asks the destination first, once that holds a copy."""

    def __init__(self, request: Any, ask_back: Callable[[BaseException], None]) -> None:
        super().__init__(request)
        self.held = False
        self._ask_back = ask_back
        self._why: BaseException | None = None

    def cancel(self, reason: BaseException) -> None:
        if not self.held or self.question is not None:
            super().cancel(reason)
            return
        self._why = reason
        self._ask_back(reason)

    def detach(self) -> None:
        """The destination has no copy (any more)."""
        if self._why is not None:
            super().cancel(self._why)


def _statistics(report: Message) -> RestoreStatistics | None:
    message = report.get("restore")
    if not isinstance(message, dict):
        return None
    return RestoreStatistics(
        **{one.name: int(message[one.name]) for one in fields(RestoreStatistics)}
    )
