"""The destination's side of a migration: receive the images, restore, send the final message.

The restore waits in CRIU's ``post-restore`` notification, in which the processes exist but do not
run, and a failure of the hook ends them. The destination sends ``prepared``, and runs the copy only
after the source's ``go``. A failure before the final message (``running``; for post-copy
``complete``, after all memory has arrived) ends the copy. If the source is lost after that message
and before its response ``done``, it may or may not have ended its process: the copy is stopped, and
the call raises ``MigrationInDoubtError``. The states are in ``restored_copy.py``.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from .._calls import requirements, verbs
from .._calls.notification import Hook, Notification
from .._calls.progress import lazy_bytes
from .._pages.lazy_pages import LazyPages
from .._support.unpatched import close
from .._system.descriptors import descriptors_of
from .._transport.worker import Worker
from ..enums import Notify
from ..errors import CriuError, MigrationError, MigrationInDoubtError, PeerLostError
from ..options.criu_opts import CriuOpts
from ..options.values import PageServer
from ..results import RestoreStatistics
from . import image_transfer
from .common import MARGIN, Phases, Workspace, for_criu, has_wide_counts, seconds
from .control_channel import Channel
from .page_relay import PageRelay
from .restored_copy import RestoredCopy
from .result import MigrationMode, MigrationResult
from .watchdog import Watchdog, identity_of

LOOK = 0.05
"""Seconds between two checks of the connection, during a wait for the daemon."""


@dataclass(eq=False, kw_only=True)
class Destination:
    """The migration of one process tree to this host."""

    opts: CriuOpts
    workspace: Workspace
    watchdog: Watchdog
    phases: Phases
    peer_timeout: float
    via: Worker
    on_notify: Hook | None

    def __post_init__(self) -> None:
        self.channel: Channel
        self.image_bytes = 0
        self._announced = 0
        self._lazy_bytes = 0
        self.mode = MigrationMode.STOP_AND_COPY
        self.relay: PageRelay | None = None
        self._daemon: LazyPages | None = None
        self._held: list[int] = []
        """Copies of the daemon's userfaultfds: without them its end fills memory with zeros."""
        self._copy = RestoredCopy(self.watchdog)
        self._downtime = 0.0

    def measure(self) -> tuple[str, int, int | None]:
        """Phase, bytes done, total bytes if known."""
        phase = self.phases.name
        if phase == "images":
            return phase, self.image_bytes, self._announced
        if phase == "pages" and self.relay is not None:
            # The connection carries more than pages.
            return phase, self.relay.moved, max(self.relay.moved, self._lazy_bytes)
        return phase, 0, None

    def put_pages(self, data: bytes | bytearray) -> None:
        """Forward data of the source's CRIU to the lazy-pages daemon."""
        if self.relay is not None:
            self.relay.put(data)

    def fail(self) -> None:
        """Make the restore fail, because the source is lost or cancelled."""
        if self.relay is not None:
            self.relay.finish()
        self._copy.end_unless_final()

    def run(self) -> MigrationResult:
        """Receive a process and run it. The caller closes the channel, and this object."""
        self._greet()
        number = self._receive()
        self.phases.enter("restore")
        work: Any = self.opts.work_directory
        if work is None:
            work = os.path.join(self.workspace.path, "work")
            os.mkdir(work, 0o700)
        opts = for_criu(
            self.opts,
            images_directory=os.path.join(self.workspace.path, str(number)),
            work_directory=work,
            lazy_pages=True if self.mode.lazy else None,
        )
        if self.mode.lazy:
            self._lazy_bytes = lazy_bytes(os.path.join(self.workspace.path, str(number)))
            self._start_daemon(opts)
        try:
            restored = verbs.restore(opts, via=self.via, on_notify=self._hook)
            if self.mode.lazy:
                self.phases.enter("pages")
                while not self._has_all(LOOK):
                    pass
                self._send_final("complete")
            self.phases.enter("answer")
            message = self.channel.expect("done")
            with contextlib.suppress(PeerLostError):  # the message counts, whatever its content
                self._downtime = seconds(message, "downtime", math.inf)
        except BaseException as error:
            self._undo(error)
        self._copy.own()
        self._report(restored.statistics)
        return MigrationResult(
            pid=restored.pid,
            mode=self.mode,
            images=self.workspace.kept_path,
            image_bytes=self.image_bytes,
            page_bytes=0 if self.relay is None else self.relay.moved,
            downtime=self._downtime,
            duration=self.phases.finish(),
            phases=self.phases.seconds,
            restore=restored.statistics,
        )

    def _greet(self) -> None:
        self.phases.enter("hello")
        hello = self.channel.expect("hello")
        try:
            self.mode = MigrationMode(hello.get("mode", ""))
        except ValueError:
            raise MigrationError(
                f"the source requests the unknown mode {hello.get('mode')!r}"
            ) from None
        version = requirements.program_version(self.via)
        if self.mode.lazy:
            if not requirements.program_features(self.via).lazy_pages:
                raise MigrationError("the destination's kernel has no userfaultfd for CRIU")
            if hello.get("wide") is not has_wide_counts(version):
                raise MigrationError(
                    f"CRIU {hello.get('criu')} at the source and {version} at the destination "
                    "cannot exchange pages: the page format changed in CRIU 4.2"
                )
        self.channel.send_message("hello", peer_timeout=self.peer_timeout, criu=str(version))

    def _receive(self) -> int:
        self.phases.enter("images")
        number = 0
        while True:
            message = self.channel.expect("images", "restore")
            if message["word"] == "restore":
                if not number or message.get("lazy") is not self.mode.lazy:
                    raise MigrationError(
                        "the source requests a restore of images that it did not send"
                    )
                return number
            self._announced = self.image_bytes + image_transfer.number(message, "bytes")
            number = image_transfer.receive(
                self.channel, self.workspace.path, message, number, self._count
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
            via=self.via,
        )
        relay.theirs.close()
        self.watchdog.set_cleanup(daemon=identity_of(self._daemon.pid))
        relay.start(self.channel)

    def _hook(self, notification: Notification) -> None:
        if self.on_notify is not None:
            self.on_notify(notification)
        if notification.action is Notify.POST_RESTORE:
            assert notification.pid is not None
            self._hold(notification.pid)
        elif notification.action is Notify.POST_RESUME:
            if self.mode.lazy:
                self.channel.send_message("running")
            else:
                self._send_final("running")

    def _hold(self, pid: int) -> None:
        ended = MigrationError("the lazy-pages daemon ended before the process ran")
        if self._daemon is not None:
            try:
                for fd in descriptors_of(self._daemon.pid, "anon_inode:[userfaultfd]"):
                    self._held.append(os.dup(fd))
            except ProcessLookupError:
                self._has_all(MARGIN)  # raises the reason, such as a lost source
                raise ended from None
        self._copy.prepare(pid, self._held)
        if self._daemon is not None and self._has_all(0):
            raise ended
        self.channel.send_message("prepared", pid=pid)
        self.channel.expect("go")

    def _check(self) -> None:
        """Raise if the source is lost or cancelled, or the deadline has passed."""
        for reason in (self.channel.refused, self.channel.lost):
            if reason is not None:
                raise reason
        self.channel.check_deadline()

    def _has_all(self, seconds: float) -> bool:
        """Whether the daemon has succeeded. Raises if it failed."""
        assert self._daemon is not None
        try:
            status = self._daemon.wait(seconds)
        except TimeoutError:
            self._check()
            return False
        if status:
            self._check()  # the daemon also ends when the source is lost
            raise MigrationError(f"the lazy-pages daemon ended with {status}")
        return True

    def _send_final(self, word: str) -> None:
        """Send the message after which the source ends its process."""
        if self.channel.lost is not None:
            raise self.channel.lost
        self._copy.finalize()
        self.channel.send_message(word)

    def _undo(self, error: BaseException) -> None:
        """End the copy, or stop it if the source may have ended its process."""
        if self._copy.undo(refused=self.channel.refused is not None):
            pid = self._copy.pid
            raise MigrationInDoubtError(
                f"the process was restored as pid {pid}, and the connection to the source was lost "
                f"before the source confirmed that it has ended its process ({error}); the copy "
                "here is stopped now. If the call at the source returned, or its error says that "
                f"the process runs at the destination, resume the copy: kill -CONT {pid}; if it "
                "raised another error, the process runs there, and the copy has to be ended: "
                f"kill -KILL {pid}. If it was killed, see after {self.peer_timeout + MARGIN:g} s "
                "whether the process runs there",
                pid=pid,
                phase=self.phases.name,
            ) from error
        raise error

    def _report(self, statistics: RestoreStatistics | None) -> None:
        with contextlib.suppress(CriuError):
            message = None if statistics is None else asdict(statistics)
            self.channel.send_message("report", restore=message)

    def close(self) -> None:
        """Release the daemon, the relay and the copies of descriptors."""
        if self._daemon is not None:
            self._daemon.close()
        for fd in self._held:
            close(fd)
        self._held = []
        if self.relay is not None:
            self.relay.close()
