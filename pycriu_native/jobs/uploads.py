"""The thread that uploads the newest checkpoint of a running job to the storage."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .directory import Checkpoint, JobDirectory
from .lease import Lease, LeaseLost
from .remote_checkpoints import NONE, Commit, commits, identity, prune, upload
from .storage import Storage

LOOK = 0.5
"""Seconds between two checks for a new checkpoint."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until a failed upload is repeated: the first pause, and the longest one."""

PATIENCE = 10.0
"""Seconds to wait for a cancelled upload, which removes its files."""


class Cancelled(Exception):
    """The upload was cancelled."""


@dataclass(eq=False)
class Uploads:
    """Uploads while the job runs: one at a time, always of the newest checkpoint."""

    storage: Storage
    lease: Lease
    directory: JobDirectory
    spec: dict[str, Any]
    report: Callable[..., None]
    """``report(event, message, counts)``: report an event, and change the status by ``counts``."""
    lost: Callable[[str], None]
    """Called if another holder has the lease."""

    def __post_init__(self) -> None:
        self._changed = threading.Event()
        self._until: float | None = None
        """Set at the end of the job: time after which no upload is started."""
        self._cancelled = False
        self._done: tuple[int, int] | None = None
        self._failed = 0
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, until: float, is_silent: Callable[[], bool] = lambda: False) -> bool:
        """Upload the last checkpoint; returns whether the storage has it.

        After ``until``, on the monotonic clock, no upload is started; a running one is completed,
        unless ``is_silent`` returns True: the storage does not respond.
        """
        self._until = until
        self._changed.set()
        while self._thread.is_alive():
            if is_silent():
                self._cancelled = True
                return False
            self._thread.join(LOOK)
        return self._next() is None

    def cancel(self) -> None:
        """Cancel a running upload, and end the thread."""
        self._cancelled, self._until = True, -math.inf
        self._changed.set()
        self._thread.join(PATIENCE)

    # ---- the thread ----

    def _run(self) -> None:
        pause = LOOK
        while not self._cancelled:
            due, until = self._next(), self._until
            is_late = until is not None and time.monotonic() >= until
            if until is not None and (due is None or (self._failed and is_late)):
                return
            if due is not None and self._try(due):
                pause, self._failed = LOOK, 0
                continue
            if due is not None:
                pause = min(FIRST_PAUSE * 2**self._failed, LONGEST_PAUSE)
                self._failed += 1
            if self._until is not None:
                pause = min(pause, max(0.0, self._until - time.monotonic()))
            self._changed.wait(pause)
            self._changed.clear()

    def _next(self) -> Checkpoint | None:
        """The newest checkpoint, if it was not uploaded."""
        newest = self.directory.all_checkpoints()[:1]
        return newest[0] if newest and identity(newest[0]) != self._done else None

    def _try(self, due: Checkpoint) -> bool:
        began = time.monotonic()
        try:
            if self._done is None:
                there = commits(self.storage)[:1]
                self._done = identity(there[0].checkpoint) if there else NONE
                if self._done == identity(due):
                    return True
            with self.directory.pinned(due):
                made = upload(
                    self.storage,
                    self.lease,
                    due,
                    compress=self.spec["compress"],
                    encrypt_to=self.spec["encrypt_to"],
                    check=self._check,
                )
            self._uploaded(made, due, time.monotonic() - began)
            prune(self.storage, self.lease, made, int(self.spec["keep"]))
        except Cancelled:
            return False
        except LeaseLost as error:
            self._cancelled = True
            self.lost(str(error))
            return False
        except Exception as error:  # of any file system
            if due.number not in {each.number for each in self.directory.all_checkpoints()}:
                return False  # a newer one has replaced it
            what = "upload" if self._done != identity(due) else "removal of older checkpoints"
            why = f"{type(error).__name__}: {error}" if str(error) else repr(error)
            message = f"{what} of checkpoint {due.number} failed: {why}"
            self.report("upload failed", message, failures=1)
            return False
        return True

    def _uploaded(self, made: Commit, due: Checkpoint, took: float) -> None:
        self._done = identity(due)
        self.report(
            "uploaded",
            f"checkpoint {due.number}: {made.uploaded / 2**20:.1f} MiB uploaded in {took:.2f} s",
            uploads=1,
            uploaded=due.number,
            last_upload=time.time(),
            last_bytes=made.uploaded,
        )

    def _check(self) -> None:
        if self._cancelled:
            raise Cancelled
