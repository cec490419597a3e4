"""The source's side of a migration: dump, send, and hand the process over (``handover.py``)."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, fields
from typing import Any

from .._calls import requirements, verbs
from .._calls.iterative_dump import More, Round, round_opts, saves_all
from .._calls.notification import Hook, Notification
from .._calls.progress import memory_of, size_of_pages
from .._system.process_identity import Target, number_of
from .._system.process_tree import process_tree
from .._transport.base import Via
from ..enums import Notify
from ..errors import CriuError, MovedMemoryError
from ..options.criu_opts import CriuOpts
from ..options.values import PageServer
from ..results import DumpResult, RestoreStatistics
from . import image_transfer
from .common import Phases, Workspace, for_criu, has_wide_counts, seconds
from .control_channel import Channel, Message
from .handover import Handover, HeldCall, State
from .page_relay import PageRelay
from .result import MigrationMode, MigrationResult
from .watchdog import Watchdog, identity_of
from .watchdog_process import end_tree

REPORT_TIMEOUT = 5.0
"""Seconds to wait for the destination's statistics, after everything else is complete."""


class Rounds:
    """The image directories of a migration: one for each pre-dump, the last for the dump."""

    def __init__(self, opts: CriuOpts, path: str, *, track: bool) -> None:
        self._opts = for_criu(opts, images_directory=None)
        self._path = path
        self._track = track
        self.number = 0
        self.sent = 0
        """Bytes sent, of all directories."""
        self.done = self.size = 0
        """Bytes of the directory that was sent last or is being sent: sent ones, and all."""

    @property
    def directory(self) -> str:
        return f"{self._path}/{self.number}"

    def next(self, **changes: Any) -> CriuOpts:
        """Options for the next dump or pre-dump."""
        self.number += 1
        return self.options(**changes)

    def options(self, **changes: Any) -> CriuOpts:
        """Options for a dump or pre-dump into the current directory."""
        return for_criu(
            round_opts(self._opts, self._path, self.number, track=self._track), **changes
        )

    def send(self, channel: Channel) -> None:
        self.done, self.size = 0, image_transfer.size_of(self.directory)
        image_transfer.send(channel, self.directory, self.number, self._count)

    def _count(self, size: int) -> None:
        self.sent += size
        self.done += size


@dataclass(eq=False, kw_only=True)
class Source:
    """The migration of one process tree from this host."""

    target: Target
    opts: CriuOpts
    mode: MigrationMode
    workspace: Workspace
    channel: Channel
    relay: PageRelay | None
    watchdog: Watchdog
    phases: Phases
    via: Via
    on_notify: Hook | None
    should_continue: More

    def __post_init__(self) -> None:
        self._rounds = Rounds(self.opts, self.workspace.path, track=self.mode.rounds)
        self._handover = Handover(self.channel, self.phases, self.watchdog, self.relay)
        self._refusal = ""
        """Why the dump saves all memory, though rounds have saved it."""
        self._memory = 0
        """Bytes of the tree's memory, before the migration."""
        self._tree: list[list[Any]] = []
        """Pid and start time of the processes, frozen in the final dump."""

    @property
    def has_moved(self) -> bool:
        """Whether the process was handed over: the destination's copy runs, whatever fails here."""
        return self._handover.state is State.GIVEN_UP

    def measure(self) -> tuple[str, int, int | None]:
        """Phase, bytes done, total bytes if known."""
        phase, rounds = self.phases.name, self._rounds
        if phase in ("dump", "pre-dump"):
            done = size_of_pages(rounds.directory, parents=False)
            return phase, done, None if self.mode.lazy and phase == "dump" else self._memory
        if phase in ("images", "images of rounds"):
            return phase, rounds.done, rounds.size
        if phase == "pages" and self.relay is not None:
            return phase, self.relay.moved, max(self.relay.moved, self._memory - rounds.size)
        return phase, 0, None

    def run(self) -> MigrationResult:
        self.phases.enter("hello")
        self._memory = memory_of(process_tree(number_of(self.target)))
        version = requirements.program_version(self.via)
        self.channel.send_message(
            "hello", mode=str(self.mode), criu=str(version), wide=has_wide_counts(version)
        )
        self._handover.peer_timeout = seconds(self.channel.expect("hello"), "peer_timeout")
        if self.mode.rounds:
            self._pre_dump()
        dumped = self._dump()
        self._handover.join()
        return self._result(dumped)

    def _pre_dump(self) -> None:
        while True:
            self.phases.enter("pre-dump")
            try:
                result = verbs.pre_dump(
                    self.target, self._rounds.next(), via=self.via, on_notify=self.on_notify
                )
            except MovedMemoryError as moved:
                self._refusal = saves_all(moved)
                return
            self._send("images of rounds")
            if not self.should_continue(Round(number=self._rounds.number, result=result)):
                return

    def _dump(self) -> DumpResult:
        self.phases.enter("dump")
        changes: dict[str, Any] = {}
        if self.relay is not None:
            server = PageServer(fd=self.relay.theirs.fileno())
            changes = {"lazy_pages": True, "page_server": server}
        try:
            if not self._refusal:
                return self._held(self._rounds.next(**changes))
        except MovedMemoryError as moved:
            self._refusal = saves_all(moved)
        return self._held(self._rounds.options(parent_image=None, **changes))

    def _held(self, opts: CriuOpts) -> DumpResult:
        request = verbs.dump_request(self.target, opts, self.via, self._hook, None)
        call = HeldCall(request, self._handover)
        try:
            return verbs.dump_result(request, call.wait())
        except BaseException as error:
            try:
                self._handover.fail(error)
            finally:
                if self.has_moved:  # the processes run here if CRIU was killed before it ended them
                    for pid, start in self._tree:
                        end_tree(pid, start)

    def _send(self, phase: str) -> None:
        self.phases.enter(phase)
        self._rounds.send(self.channel)

    def _hook(self, notification: Notification) -> None:
        if notification.action is Notify.PRE_DUMP:
            self._handover.frozen_at = time.monotonic()
        if self.on_notify is not None:
            self.on_notify(notification)
        if notification.action is Notify.POST_DUMP:
            tree = process_tree(number_of(self.target))
            self._tree = [each for pid in tree for each in identity_of(pid)]
            self._send("images")
            self.phases.enter("restore")
            self.channel.send_message("restore", lazy=self.mode.lazy)

    def _result(self, dumped: DumpResult) -> MigrationResult:
        self.phases.enter("report")
        restored = None
        with contextlib.suppress(CriuError, TypeError, ValueError):
            restored = _statistics(self.channel.expect("report", within=REPORT_TIMEOUT))
        return MigrationResult(
            pid=self._handover.pid,
            mode=self.mode,
            images=self.workspace.kept_path,
            image_bytes=self._rounds.sent,
            page_bytes=0 if self.relay is None else self.relay.moved,
            downtime=self._handover.downtime,
            duration=self.phases.finish(),
            phases=self.phases.seconds,
            dump=dumped.statistics,
            restore=restored,
            not_incremental=self._refusal,
        )


def _statistics(report: Message) -> RestoreStatistics | None:
    message = report.get("restore")
    if not isinstance(message, dict):
        return None
    values = {one.name: int(message[one.name]) for one in fields(RestoreStatistics)}
    return RestoreStatistics(**values)
