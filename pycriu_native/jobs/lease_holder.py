"""The parent process of the supervisor of a job with ``storage``: it holds the lease, and uploads.

It takes the lease, fetches the newest checkpoint, and starts the supervisor, which ends when this
process ends. If the lease is not renewed in time, a timer of the kernel kills the process, even if
it is stopped, so that the job has ended before another host can start it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from .._support.held_signals import HeldSignals, ignore, unblock
from .._support.unpatched import close, readable
from .._system.host import boot_id
from .._system.system_calls import kill_at
from ..errors import CriuError, ImagesError, OptionError
from .directory import BUSY, STORAGE, JobDirectory, State, StorageStatus
from .job import FAILED, print_message, read_spec, start_with
from .lease import Last, Lease, LeaseLost, acquire, holder_of, last_lease, now
from .remote_checkpoints import Commit, fetch, newest_intact
from .storage import Storage, UnreadableError
from .uploads import Uploads

LOOK = 0.2
"""Seconds between two checks for a signal while the storage is used."""

RENEWED, STOPPED, KILLED = 1 / 6, 0.5, 0.8
"""Fractions of the lease: the time between renewals, and the time without a renewal until the job
is stopped with a last checkpoint, and until it is killed. The rest is a margin for clock drift."""


SILENT = 5.0
"""Seconds without a response of the storage after which this is reported."""

Result = TypeVar("Result")


class Stopped(Exception):
    """A signal was received before the job was started."""


class AnotherStorage(Exception):
    """The storage has no former lease of the job, for example because it is not mounted."""


class LeaseHolder:
    """One run of a job on this host."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._length = float(spec["lease"])
        self._directory = JobDirectory(spec["directory"])
        known = self._directory.storage_status() or StorageStatus()
        seen = known.seen if known.url == spec["storage"] else 0
        self._status = replace(known, url=spec["storage"], token=0, seen=seen)
        self._status_lock = threading.Lock()
        self._over = threading.Event()
        self._lost = ""
        self._heard = time.monotonic()
        """Time of the last response of the storage."""
        self._silent = False
        self._signals = HeldSignals()

    def run(self) -> int:
        """Run the job; returns the exit code of the supervisor, ``BUSY`` or ``FAILED``."""
        self._signals.install()
        unblock()
        try:
            storage, lease = self._on_thread(self._acquire)
            return BUSY if lease is None else self._held(storage, lease)
        except Stopped:
            assert self._signals.stopped is not None
            why = f"; {self._silence()}" if self._silent else ""
            self._directory.not_begun(self._signals.stopped, why)
            return 0
        except _Ended:
            return 0
        except Exception as error:  # of any file system
            text = str(error) if isinstance(error, CriuError | AnotherStorage) else repr(error)
            if isinstance(error, OptionError):  # of the storage, which the message names
                text = "; ".join(each.rule for each in error.problems)
            message = f"storage {self._spec['storage']}: {text}"
            if isinstance(error, CriuError) or not self._status.seen:
                self._directory.record("failed", message)
                return FAILED
            # It was available before, and can be available to the next run.
            interrupted = {"state": State.INTERRUPTED, "stopped_by": STORAGE}
            self._directory.record("interrupted", message, **interrupted)
            return 0

    def _on_thread(self, function: Callable[[], Result]) -> Result:
        """Call a function that uses the storage, on another thread: the call may never return.

        Raises what it raises. After a signal that stops the job it is awaited for the grace time,
        then ``Stopped`` is raised. It calls ``_check`` after responses of the storage.
        """
        results: list[Result] = []
        errors: list[Exception] = []
        done, ours = os.pipe()

        def call() -> None:
            try:
                results.append(function())
            except Exception as error:
                errors.append(error)
            finally:
                close(ours)

        self._heard, self._silent = time.monotonic(), False
        until = float("inf")
        threading.Thread(target=call, name="storage", daemon=True).start()
        while not readable(done, seconds=LOOK):
            moment = time.monotonic()
            if not self._silent and moment - self._heard > SILENT:
                self._silent = True
                self._report("storage silent", self._silence())
                print_message(f"{self._silence()}; waiting for it")
            if self._signals.stopped is not None:
                until = min(until, moment + float(self._spec["grace"]))
            if moment >= until:
                self._silent = True
                raise Stopped
        close(done)
        if errors:
            raise errors[0]
        return results[0]

    def _silence(self) -> str:
        seconds = time.monotonic() - self._heard
        return f"the storage {self._spec['storage']} has not responded for {seconds:.0f} s"

    def _check(self) -> None:
        self._heard, self._silent = time.monotonic(), False
        if self._signals.stopped is not None:
            raise Stopped
        if self._lost:
            raise LeaseLost(self._lost)

    def _wait(self, seconds: float) -> None:
        readable(self._spec["alive"], seconds=seconds)
        self._check()

    # ---- the lease ----

    def _acquire(self) -> tuple[Storage, Lease | None]:
        storage = Storage(self._spec["storage"])
        known = self._directory.command()
        assert known is not None
        about = {
            "holder": holder_of(self._spec["lock"], boot_id()),
            "host": os.uname().nodename,
            "path": str(self._directory.path),
            "command": known["command"],
        }

        def check(last: Last) -> None:
            self._check()
            if last.token < self._status.seen:
                raise AnotherStorage(
                    f"its newest lease is {last.token}, and was {self._status.seen} before: it is "
                    "not mounted, or was emptied"
                )
            self._check_same(last, about)
            if last.end is not None and last.end.get("exit_code") is not None:
                self._has_ended(last.end)

        lease = acquire(
            storage, self._length, about, self._wait, held=self._length * KILLED, check=check
        )
        if lease is None:
            last = last_lease(storage)
            host = (last.about or {}).get("host", "another host")
            message = f"the job of {self._spec['storage']} runs on {host}"
            self._report("busy", message, seen=last.token)
            return storage, None
        kill_at(lease.until)
        ours = {"token": lease.token, "seen": lease.token, "exclusive": lease.exclusive}
        self._report("lease", f"has the lease {lease.token}", **ours)
        return storage, lease

    def _check_same(self, last: Last, about: dict[str, Any]) -> None:
        """Check that the storage belongs to this job. ``ImagesError``."""
        for name, what in (("command", "command"), ("path", "directory")):
            if last.about is not None and last.about[name] != about[name]:
                raise ImagesError(
                    f"it belongs to a job with another {what}: {last.about[name]!r}, not "
                    f"{about[name]!r}; use the same {what}, or another storage"
                )

    def _has_ended(self, end: dict[str, Any]) -> None:
        """Record that the job has ended on another host."""
        code, message = int(end["exit_code"]), f"{end['message']} (on {end['host']})"
        status = replace(
            self._directory.status(), state=State.ENDED, exit_code=code, message=message
        )
        self._directory.event("ended", message=message, exit_code=code)
        self._directory.keep(status)
        raise _Ended

    def _renew(self, lease: Lease) -> None:
        """The thread that renews the lease."""
        failing = False
        while not self._over.wait(self._length * RENEWED):
            try:
                lease.renew(self._length * KILLED)
                kill_at(lease.until)
                failing = False
            except LeaseLost as error:
                self._lose(str(error))
                return
            except Exception as error:  # of any file system
                if not failing:
                    self._report("lease not renewed", f"the lease cannot be renewed: {error!r}")
                failing = True

    def _lose(self, message: str) -> None:
        self._lost = message

    # ---- the job ----

    def _held(self, storage: Storage, lease: Lease) -> int:
        renewing = threading.Thread(target=self._renew, args=(lease,), name="lease", daemon=True)
        renewing.start()
        try:
            local = newest_intact(self._directory, self._directory.status().doubts)
            if not self._on_thread(lambda: self._prepare(storage, lease, local)):
                return 0
            return self._run(storage, lease)
        finally:
            self._over.set()
            if not self._silent:  # else the lease expires
                renewing.join()
                self._give_back(lease)

    def _prepare(self, storage: Storage, lease: Lease, local: tuple[int, int]) -> bool:
        """Fetch the newest checkpoint into the directory; False if that fails.

        ``local`` is the newest one there.
        """
        before = self._directory.status().started
        try:
            lease.begin()
            self._check()
            made = fetch(
                storage,
                self._directory,
                local,
                skip=self._directory.status().doubts,
                decrypt_with=self._spec["decrypt_with"],
                check=self._check,
                damaged=self._damaged,
            )
        except ImagesError as error:
            # What can be read with another key, for example, is not lost.
            if self._spec["or_start_over"] and not isinstance(error, UnreadableError):
                return True
            state = State.CANNOT_RESTORE
            self._directory.record("cannot be restored", str(error), state=state)
            return False
        if made is not None:
            self._report("fetched", f"checkpoint {made.checkpoint.number} was fetched")
        elif lease.token > 1 and before is None:
            # Another host has started the job; the status must show this.
            self._directory.keep(replace(self._directory.status(), started=time.time()))
        return True

    def _damaged(self, commit: Commit, error: ImagesError) -> None:
        self._report("fetch failed", f"checkpoint {commit.checkpoint.number}: {error}")

    def _run(self, storage: Storage, lease: Lease) -> int:
        self._check()
        process = start_with("namespaces", {**self._spec, "token": lease.token, "decrypt_with": ()})
        uploads = Uploads(
            storage, lease, self._directory, self._spec, report=self._report, lost=self._lose
        )
        uploads.start()
        with self._signals.passed_on(process.pid) as end:
            self._until_ended(end, lease, process.send_signal)
            code = process.wait()
            if self._lost or code == FAILED or self._directory.status().state is State.ENDED:
                uploads.cancel()
            elif not uploads.finish(
                time.monotonic() + float(self._spec["grace"]), lambda: self._is_ending(lease)
            ):
                message = "the last checkpoint is on this host only"
                if self._is_ending(lease):
                    self._silent = True
                    message += f": the storage {self._spec['storage']} does not respond"
                self._report("not uploaded", message)
                print_message(message)
        return code if code >= 0 else 128 - code

    def _is_ending(self, lease: Lease) -> bool:
        """Whether the lease was not renewed for so long that the job has to end."""
        return now() > lease.until - self._length * (KILLED - STOPPED)

    def _until_ended(self, end: int, lease: Lease, send: Callable[[int], object]) -> None:
        stopping = False
        while not readable(end, seconds=min(0.5, self._length * 0.05)):
            if self._lost:
                send(signal.SIGKILL)
                self._report("lease lost", f"{self._lost}; the job was killed here")
                readable(end, seconds=None)
            elif self._is_ending(lease) and not stopping:
                stopping = True
                self._report("lease ends", "the job is stopped: the lease cannot be renewed")
                send(signal.SIGUSR1)  # after which a job of SLURM is requeued

    def _give_back(self, lease: Lease) -> None:
        """Release the lease for the next holder, with the end of the job."""
        status = self._directory.status()
        code = status.exit_code if status.state is State.ENDED else None
        how = {"message": status.message, "host": status.host, "exit_code": code}
        until = time.monotonic() + float(self._spec["grace"])
        while not self._lost:
            try:
                lease.check()
                lease.give_back(**how)
                return
            except LeaseLost:
                return
            except Exception as error:  # of any file system
                if time.monotonic() >= until:
                    self._report("lease not given back", f"the lease was not released: {error!r}")
                    return
            time.sleep(min(1.0, self._length * RENEWED))

    # ---- status and events ----

    def _report(
        self, event: str, message: str, *, uploads: int = 0, failures: int = 0, **more: Any
    ) -> None:
        with self._status_lock, contextlib.suppress(OSError):
            status = self._status
            self._status = replace(
                status,
                uploads=status.uploads + uploads,
                failures=status.failures + failures,
                message=message,
                **more,
            )
            self._directory.event(event, message=message)
            self._directory.keep_storage(self._status)


class _Ended(Exception):
    """The job has already ended."""


if __name__ == "__main__":
    code = LeaseHolder(read_spec()).run()
    ignore()
    sys.stdout.flush()
    os._exit(code)  # threads of a file system may be blocked
