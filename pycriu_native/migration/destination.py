"""The destination's side of a migration: take the images, restore, and say the last word.

The restore is held in CRIU's ``post-restore`` notification: everything is in place, nothing
runs, and a refusal ends all of it. The source is told so, and only its word lets it run. Until
the destination's own last word (that it runs; for post-copy, that all memory has come) its copy
is on trial: whatever happens ends it. Only between that word and the source's answer is there
a doubt that cannot be taken away: then the copy is stopped, not ended, and the caller is told.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import asdict
from typing import Any

from .._calls import requirements, verbs
from .._calls.exchange import Hook, Notification
from .._calls.progress import lazy_bytes
from .._pages.lazy_pages import LazyPages
from .._system.descriptors import descriptors_of
from .._transport.worker import Worker
from ..enums import Notify
from ..errors import CriuError, MigrationError, MigrationInDoubtError, PeerLostError
from ..options.criu_opts import CriuOpts
from ..options.values import PageServer
from ..results import RestoreStatistics
from . import image_transfer, watchdog_process
from .common import (
    MigrationMode,
    MigrationResult,
    Phases,
    Workspace,
    for_criu,
    has_wide_counts,
    seconds,
)
from .control_channel import Channel
from .page_relay import PageRelay
from .watchdog import Watchdog, guarded

LOOK = 0.05
"""Seconds between two looks at the connection while the daemon is waited for."""

USERFAULT = "anon_inode:[userfaultfd]"


class Destination:
    """A process on its way in."""

    def __init__(
        self,
        opts: CriuOpts,
        *,
        room: Workspace,
        warden: Watchdog,
        phases: Phases,
        peer_timeout: float,
        via: Worker,
        on_notify: Hook | None,
    ) -> None:
        self._opts = opts
        self._room = room
        self._watchdog = warden
        self._silence = peer_timeout
        self._via = via
        self._on_notify = on_notify
        self.phases = phases
        self.channel: Channel
        self.image_bytes = 0
        self._to_come = 0
        self._to_feed = 0
        self.mode = MigrationMode.STOP_AND_COPY
        self.relay: PageRelay | None = None
        self._daemon: LazyPages | None = None
        self._held: list[int] = []
        """Copies of the daemon's userfaultfds: memory is never filled with zeros for its end."""
        self._pid = 0
        self._start = ""
        self._last_word_said = False
        self._downtime = 0.0

    def measure(self) -> tuple[str, int, int | None]:
        """Phase, bytes done, bytes to do."""
        phase = self.phases.name
        if phase == "images":
            return phase, self.image_bytes, self._to_come
        if phase == "pages" and self.relay is not None:
            # The connection carries more than pages.
            return phase, self.relay.moved, max(self.relay.moved, self._to_feed)
        return phase, 0, None

    def put_pages(self, data: bytes | bytearray) -> None:
        """What the source's CRIU says to the daemon."""
        if self.relay is not None:
            self.relay.put(data)

    def give_up(self) -> None:
        """Nothing more will come: end what could keep a restore from failing."""
        if self.relay is not None:
            self.relay.finish()
        if self._pid and not self._last_word_said:
            watchdog_process.end_tree(self._pid, self._start)

    # ---- the caller's thread ----

    def run(self) -> MigrationResult:
        """Take a process in. Whoever calls this closes the channel and the rest."""
        self._greet()
        number = self._receive()
        self.phases.enter("restore")
        work: Any = self._opts.work_directory
        if work is None:
            work = os.path.join(self._room.path, "work")
            os.mkdir(work, 0o700)
        opts = for_criu(
            self._opts,
            images_directory=os.path.join(self._room.path, str(number)),
            work_directory=work,
            lazy_pages=True if self.mode.lazy else None,
        )
        if self.mode.lazy:
            self._to_feed = lazy_bytes(os.path.join(self._room.path, str(number)))
            self._start_daemon(opts)
        try:
            restored = verbs.restore(opts, via=self._via, on_notify=self._hook)
            if self.mode.lazy:
                self.phases.enter("pages")
                while not self._has_all(LOOK):
                    pass
                self._say_last("complete")
            self.phases.enter("answer")
            message = self.channel.expect("done")
            with contextlib.suppress(PeerLostError):  # the word counts, whatever comes with it
                self._downtime = seconds(message, "downtime", math.inf)
        except BaseException as error:
            self._undo(error)
        self._watchdog.set_cleanup(end=[], stop=[])
        self._report(restored.statistics)
        self.phases.finish()
        return MigrationResult(
            pid=restored.pid,
            mode=self.mode,
            images=self._room.told,
            image_bytes=self.image_bytes,
            page_bytes=0 if self.relay is None else self.relay.moved,
            downtime=self._downtime,
            duration=self.phases.total,
            phases=self.phases.seconds,
            restore=restored.statistics,
        )

    def _greet(self) -> None:
        self.phases.enter("hello")
        hello = self.channel.expect("hello")
        try:
            self.mode = MigrationMode(hello.get("mode", ""))
        except ValueError:
            raise MigrationError(f"the source asks for the mode {hello.get('mode')!r}") from None
        version = requirements.program_version(self._via)
        if self.mode.lazy:
            if not requirements.program_features(self._via).lazy_pages:
                raise MigrationError("the destination's kernel has no userfaultfd for CRIU")
            if hello.get("wide") is not has_wide_counts(version):
                raise MigrationError(
                    f"CRIU {hello.get('criu')} at the source and {version} at the destination "
                    "cannot exchange pages: their form changed with CRIU 4.2"
                )
        self.channel.tell("hello", peer_timeout=self._silence, criu=str(version))

    def _receive(self) -> int:
        self.phases.enter("images")
        number = 0
        while True:
            message = self.channel.expect("images", "restore")
            if message["word"] == "restore":
                if not number or message.get("lazy") is not self.mode.lazy:
                    raise MigrationError("the source asks for a restore of nothing that it sent")
                return number
            self._to_come = self.image_bytes + image_transfer.number(message, "bytes")
            number = image_transfer.receive(
                self.channel, self._room.path, message, number, self._count
            )

    def _count(self, size: int) -> None:
        self.image_bytes += size

    def _start_daemon(self, opts: CriuOpts) -> None:
        relay = self.relay = PageRelay(serves=False)
        self._daemon = LazyPages(
            CriuOpts(
                images_directory=opts.images_directory,
                work_directory=opts.work_directory,
                page_server=PageServer(fd=relay.theirs.fileno()),
                log_level=opts.log_level,
            ),
            via=self._via,
        )
        relay.theirs.close()
        self._watchdog.set_cleanup(daemon=guarded(self._daemon.pid))
        relay.start(self.channel)

    def _hook(self, notification: Notification) -> None:
        if self._on_notify is not None:
            self._on_notify(notification)
        if notification.action is Notify.POST_RESTORE:
            assert notification.pid is not None
            self._hold(notification.pid)
        elif notification.action is Notify.POST_RESUME:
            if self.mode.lazy:
                self.channel.tell("running")
            else:
                self._say_last("running")

    def _hold(self, pid: int) -> None:
        if self._daemon is not None:
            self._held = descriptors_of(self._daemon.pid, USERFAULT)
        self._start = watchdog_process.start_of(pid)
        self._pid = pid
        self._watchdog.set_cleanup(self._held, end=guarded(pid))
        if self._daemon is not None and self._has_all(0):
            raise MigrationError("the lazy-pages daemon ended before its time")
        self.channel.tell("prepared", pid=pid)
        self.channel.expect("go")

    def _look(self) -> None:
        """Raise if the source is lost, or has given up, or the time is over."""
        for reason in (self.channel.refused, self.channel.lost):
            if reason is not None:
                raise reason
        self.channel.check_deadline()

    def _has_all(self, seconds: float) -> bool:
        """Whether the daemon has ended well; an end that is not well is raised."""
        assert self._daemon is not None
        try:
            status = self._daemon.wait(seconds)
        except TimeoutError:
            self._look()
            return False
        if status:
            self._look()  # it ends when its source does
            raise MigrationError(f"the lazy-pages daemon ended with {status}")
        return True

    def _say_last(self, word: str) -> None:
        """Say the word after which the source gives the process up, if it hears it."""
        if self.channel.lost is not None:
            raise self.channel.lost
        self._last_word_said = True
        self._watchdog.set_cleanup(stop=guarded(self._pid), end=[])
        self.channel.tell(word)

    def _undo(self, error: BaseException) -> None:
        """End the copy; or stop it, where the source may have given the process up."""
        if self._last_word_said and self.channel.refused is None:
            watchdog_process.stop_tree(self._pid, self._start)
            raise MigrationInDoubtError(
                f"the process runs as pid {self._pid}, and the source was lost before it said "
                f"that it had given the process up ({error}); it is stopped now. Where the "
                f"source's call returned, go on with: kill -CONT {self._pid}; where it raised, "
                f"the process runs on there, and this one is to be ended: kill -KILL {self._pid}",
                pid=self._pid,
                phase=self.phases.name,
            ) from error
        if self._pid:
            watchdog_process.end_tree(self._pid, self._start)
        raise error

    def _report(self, statistics: RestoreStatistics | None) -> None:
        with contextlib.suppress(CriuError):
            message = None if statistics is None else asdict(statistics)
            self.channel.tell("report", restore=message)

    def close(self) -> None:
        """Give the daemon, the relay and the copies of descriptors back."""
        if self._daemon is not None:
            self._daemon.close()
        for fd in self._held:
            os.close(fd)
        self._held = []
        if self.relay is not None:
            self.relay.close()
