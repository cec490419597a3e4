"""The directory of a job: its checkpoints, output and state.

::

    job.json            the command, its working directory, and the path of this directory
    lock                held while the supervisor or the command runs
    status.json         the state; replaced atomically
    storage.json        the state of the storage, likewise
    events.jsonl        one JSON object for each event, the oldest first
    progress.json       the progress of a checkpoint; only while one is taken
    metrics.prom        Prometheus' text format; replaced atomically
    storage.prom        the same for the storage
    heartbeat.prom      the same for the time at which the supervisor last ran
    stdout, stderr      the output of the command
    start/              copies of the files of ``also`` before the first start
    checkpoints/N/      a complete, sealed checkpoint; the highest number is the newest
        parent/         the memory of the checkpoint before it, if N is incremental: hard links
    checkpoints/new/    an incomplete one
    checkpoints/linked/ its parent
    checkpoints/tmp/    temporary files
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from .._support.json_values import from_json, json_object
from .._support.unpatched import close, closing, sleep
from .._system import trusted_path
from .._system.descriptors import above_stdio
from .._system.host import boot_id
from .._system.process import stat_of, threads_of
from .._system.regular_file import read_regular
from ..errors import ImagesError, OptionError, Problem, images_error
from .metrics import heartbeat, job_metrics, storage_metrics

INTERRUPTED = 75
"""Exit code of a job that was interrupted and can be resumed (EX_TEMPFAIL of sysexits.h)."""
CANNOT_RESTORE = 76
"""Exit code of a job with checkpoints of which none can be restored here. Nothing was started."""
BUSY = 77
"""Exit code if another supervisor runs the job. Nothing was started."""

NOT_BEGUN = "was received before the command was started; nothing was started"

STORAGE = "storage"
"""``JobStatus.stopped_by`` after a run that could not reach the storage at its beginning."""

META = "pycriu-native.job"
"""The file in each checkpoint with the fields of :class:`Checkpoint`."""

LARGEST = 16 * 2**20
"""Bytes of a file of JSON that are read: a command line has at most 6 MiB."""


Stored = TypeVar("Stored")


class State(StrEnum):
    """The state of a job."""

    NEW = "new"
    """It was never started."""
    RUNNING = "running"
    """Its supervisor runs, and so does the command."""
    INTERRUPTED = "interrupted"
    """It does not run, but can be resumed."""
    CANNOT_RESTORE = "cannot be restored"
    """It does not run, and the last attempt to resume it failed."""
    ENDED = "ended"
    """The command has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    number: int
    path: str
    time: float
    """Time of its beginning, in seconds since the epoch."""
    duration: float
    """Duration of the checkpoint in seconds."""
    frozen: float
    """Seconds that the command was frozen."""
    bytes: int
    """Size of its files, without those that it shares with an earlier checkpoint."""
    parents: int = 0
    """Number of earlier checkpoints whose memory it contains as hard links; 0: it is full."""
    options: dict[str, Any] | None = None
    """The options of the restore."""
    last_pid: int = 0
    """The highest pid in use."""
    token: int = 0
    """Token of the lease at the time of the checkpoint; 0: none."""
    stopped_by: str | None = None
    """Name of a signal that the supervisor had received by then, to stop the job. If it was sent to
    all processes, the command may have received it before it was frozen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageStatus:
    """The state of the storage of a job, on this host."""

    url: str = ""
    token: int = 0
    """Token of the lease of the last run here; 0: none."""
    seen: int = 0
    """The highest token found there. A storage without it is another one, or not mounted."""
    exclusive: bool = True
    """Whether the storage has exclusive creation of files; else only time limits protect a job."""
    uploads: int = 0
    """Number of checkpoints that were uploaded and committed."""
    failures: int = 0
    """Number of failed uploads."""
    uploaded: int | None = None
    """The number of the newest checkpoint that is committed there."""
    last_upload: float | None = None
    """Time of that upload, in seconds since the epoch."""
    last_bytes: int | None = None
    """Its size in the storage."""
    message: str = ""
    """The last event, as text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointProgress:
    """The progress of a checkpoint that is being taken."""

    started: float
    """Time of its beginning, in seconds since the epoch."""
    phase: str
    """``preflight``, ``dump``, ``interrupting`` (the dump is undone), or ``seal`` (the images are
    complete, and their digests are computed)."""
    done: int = 0
    """Bytes of memory that are saved; 0 in other phases than ``dump``."""
    total: int | None = None
    """Estimated bytes of memory to save; None: unknown."""
    left: float | None = None
    """Remaining seconds of the phase, estimated; None: unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """The state of a job."""

    state: State = State.NEW
    supervisor: int | None = None
    """The pid of the supervisor in the pid namespace of its parent."""
    supervisor_start: int | None = None
    """Its start time in clock ticks, which identifies it with its pid."""
    boot_id: str | None = None
    host: str | None = None
    exit_code: int | None = None
    """Exit code of the command; negative: the signal that ended it; None: it has not ended."""
    started: float | None = None
    """Time of the first start of the command, in seconds since the epoch."""
    resumed: int = 0
    """Number of restores from a checkpoint."""
    restarted: int = 0
    """Number of restarts from the beginning."""
    checkpoints: int = 0
    """Number of checkpoints that were taken."""
    incremental: int = 0
    """Number of these that were incremental."""
    failures: int = 0
    """Number of failed checkpoints."""
    last_success: float | None = None
    """Time of the last completed checkpoint, in seconds since the epoch."""
    last_duration: float | None = None
    last_frozen: float | None = None
    last_bytes: int | None = None
    last_parents: int | None = None
    """``Checkpoint.parents`` of the last checkpoint."""
    stopped_by: str | None = None
    """The last interruption: the name of a signal, "notice" or ``STORAGE``; None: a kill."""
    doubted: int | None = None
    """The number of a checkpoint whose command has ended because of a signal from before the
    checkpoint. Until the next checkpoint, the job is not resumed from this one and later ones."""
    doubted_token: int = 0
    """The token of the lease at that time. Checkpoints with a higher one were taken later."""
    message: str = ""
    """The last event, as text."""
    storage: StorageStatus | None = None
    """The state of the storage; None for a job without ``storage``."""
    progress: CheckpointProgress | None = None
    """The progress of a checkpoint that is being taken; None: none is."""

    def doubts(self, checkpoint: Checkpoint) -> bool:
        """Whether the job is not resumed from a checkpoint, because of ``doubted``."""
        if self.doubted is None or checkpoint.number < self.doubted:
            return False
        return checkpoint.token <= self.doubted_token


class JobDirectory:
    """The files of one job."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self.checkpoints = self.path / "checkpoints"
        self.new = self.checkpoints / "new"
        self.temporary = self.checkpoints / "tmp"
        self.linked = self.checkpoints / "linked"
        self.start = self.path / "start"

    # ---- creation ----

    def make(self) -> None:
        """Create the directory if it is missing. Raises ``ImagesError``, ``OptionError``."""
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            others = set(os.listdir(self.path)) - {"lock", ".job.json.partial"}
            trusted_path.check(str(self.path))
        except trusted_path.UntrustedError as error:
            rule = f"a directory that no other user can change is accepted: {error.strerror}"
            raise OptionError([Problem("directory", str(self.path), rule)], verb="run") from None
        except OSError as error:
            raise self.unusable(error) from None
        if others and "job.json" not in others and self.command() is None:
            rule = "it contains files of something else; name a new or an empty directory"
            raise OptionError([Problem("directory", str(self.path), rule)], verb="run")

    def check_command(self, command: Sequence[str]) -> None:
        """Raise ``OptionError`` if another command was started here, or this one elsewhere."""
        known = self.command()
        if known is not None and known["command"] != [*command] and self._was_started():
            rule = f"{self.path} is the directory of another command: {known['command']}"
            raise OptionError([Problem("command", [*command], rule)], verb="run")
        former = None if known is None else known["path"]
        was_moved = former not in (None, self._real()) and self._was_started()
        if was_moved and self.status().state is not State.ENDED:
            rule = f"it was renamed: the job writes its output to {former}; rename it back"
            raise OptionError([Problem("directory", str(self.path), rule)], verb="run")

    def check_storage(self, storage: str | None) -> None:
        """Raise ``OptionError`` for a run without a lease of a job that another host may run."""
        known = self.storage_status()
        if storage is not None or known is None or not known.seen:
            return
        if self.status().state is not State.ENDED:
            rule = (
                f"the job has the storage {known.url}, from which another host can have resumed "
                f"it; name it, or remove {self.path}/storage.json if no other host has"
            )
            raise OptionError([Problem("storage", None, rule)], verb="run")

    def take_command(self, command: Sequence[str], directory: str) -> None:
        """Store the command; the caller has the lock. Raises as ``check_command``."""
        self.check_command(command)
        if self.command() is None or not self._was_started():
            ours = {"command": [*command], "directory": directory, "path": self._real()}
            try:
                self.write("job.json", json.dumps(ours) + "\n")
            except OSError as error:
                raise self.unusable(error) from None

    def _real(self) -> str:
        """The path that the images have."""
        return os.path.realpath(self.path)

    def _was_started(self) -> bool:
        # The directory ``start`` is created before the first start.
        return self.start.exists() or self.status().started is not None

    def unusable(self, error: OSError) -> ImagesError:
        """The exception for an error of the file system."""
        return images_error(f"{self.path} cannot be used", error)

    # ---- one supervisor at a time ----

    def lock(
        self, seconds: float = 0, *, stopped: Callable[[], bool] = lambda: False
    ) -> int | None:
        """Take the lock, waiting at most ``seconds``. Returns a descriptor that holds it, or None.

        ``stopped`` ends the wait. The lock of a killed supervisor is released before all of its
        processes have ended, so this also waits until its pid is free.
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            fd = above_stdio(os.open(self.path / "lock", flags, 0o600))
        except OSError as error:
            raise self.unusable(error) from None
        until = time.monotonic() + seconds
        with contextlib.ExitStack() as owned:
            owned.callback(close, fd)
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not self._is_ending():
                        owned.pop_all()
                        return fd
                if stopped() or time.monotonic() >= until:
                    return None
                sleep(0.05)

    def wait_until_free(self, seconds: float) -> None:
        """Wait until no supervisor runs, at most so many seconds."""
        fd = self.lock(seconds)
        if fd is not None:
            close(fd)

    def is_busy(self) -> bool:
        """Whether a supervisor runs, or processes of one are ending."""
        return self._is_locked() or self._is_ending()

    def _is_ending(self) -> bool:
        """Whether the last supervisor on this host still exists."""
        status = self._last_status()
        if status.supervisor is None or status.boot_id != boot_id():
            return False
        seen = stat_of(status.supervisor)
        if seen is None or seen.start != status.supervisor_start:
            return False
        # Its first thread can have ended before the others, the last of which ends the namespace.
        threads = [stat_of(status.supervisor, each) for each in threads_of(status.supervisor)]
        return any(each is not None and not each.has_ended for each in threads)

    def _is_locked(self) -> bool:
        # Another user cannot read it; then only _is_ending is used.
        with contextlib.suppress(OSError), open(self.path / "lock", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    # ---- the state ----

    def command(self) -> dict[str, Any] | None:
        """``job.json``; None for a directory without a job. ``ImagesError``."""
        cure = (
            'it contains the command and its working directory: {"command": ["PROGRAM", '
            '"ARGUMENT"], "directory": "/PATH"}'
        )
        return self._stored("job.json", _command, cure)

    def status(self) -> JobStatus:
        """The state. It is INTERRUPTED if the file has RUNNING, but no supervisor runs."""
        status = self._last_status()
        if status.state is State.RUNNING and not self.is_busy():
            # The supervisor may have ended after it was read.
            status = self._last_status()
            if status.state is State.RUNNING:
                return replace(status, state=State.INTERRUPTED)
        if status.state is State.RUNNING:
            return replace(status, progress=self._progress())
        return status

    def _progress(self) -> CheckpointProgress | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return from_json(CheckpointProgress, _read(self.path / "progress.json"))
        return None

    def keep_progress(self, progress: CheckpointProgress | None) -> None:
        """Write the progress of a checkpoint; None: none is being taken. Errors are ignored."""
        with contextlib.suppress(OSError):
            if progress is None:
                (self.path / "progress.json").unlink(missing_ok=True)
            else:
                self.write("progress.json", json.dumps(asdict(progress)) + "\n", synced=False)

    def beat(self) -> None:
        """Write the metric of the supervisor's last activity. Errors are ignored."""
        with contextlib.suppress(OSError):
            self.write("heartbeat.prom", heartbeat(self.path, time.time()), synced=False)

    def _last_status(self) -> JobStatus:
        """``status.json`` of the last supervisor. ``ImagesError``."""
        storage = self.storage_status()
        cure = (
            "unless the job has ended (job log --events), remove this file: the next run then "
            "resumes the job from its newest checkpoint"
        )
        status = self._stored("status.json", lambda body: _status(body, storage), cure)
        return status or JobStatus(storage=storage)

    def storage_status(self) -> StorageStatus | None:
        """The state of the storage. ``ImagesError``."""
        cure = "remove this file: the next run writes it again"
        return self._stored("storage.json", lambda body: from_json(StorageStatus, body), cure)

    def _stored(self, name: str, read: Callable[[Any], Stored], cure: str) -> Stored | None:
        """What ``read`` makes of a file of JSON; None if it is missing. ``ImagesError``."""
        try:
            return read(_read(self.path / name))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            why = f"{self.path}/{name} cannot be read: {error!r}; {cure}"
            raise ImagesError(why) from None

    def storage_message(self) -> str:
        """The last event of the storage, as text."""
        status = self.storage_status()
        return "" if status is None else status.message

    def keep(self, status: JobStatus) -> None:
        """Write the status and its metrics."""
        body = asdict(replace(status, storage=None))
        del body["progress"]
        self.write("status.json", json.dumps(body, indent=1) + "\n")
        running = status.state is State.RUNNING
        self.write("metrics.prom", job_metrics(self.path, status, running=running))

    def keep_storage(self, status: StorageStatus) -> None:
        """Write the state of the storage and its metrics."""
        self.write("storage.json", json.dumps(asdict(status), indent=1) + "\n")
        self.write("storage.prom", storage_metrics(self.path, status))

    def record(self, event: str, message: str, **changes: Any) -> None:
        """Change the status, and add an event with the same message."""
        self.keep(replace(self.status(), message=message, **changes))
        self.event(event, message=message)

    def not_begun(self, number: int, why: str = "") -> None:
        """Record a signal that was received before the command was started or resumed.

        ``why`` is added to the message.
        """
        name = signal.Signals(number).name
        message = f"{name} {NOT_BEGUN}{why}"
        self.record("interrupted", message, state=State.INTERRUPTED, stopped_by=name)

    def write(self, name: str, text: str, *, synced: bool = True) -> None:
        """Replace a file atomically; if ``synced``, it is on disk when this returns."""
        partial = self.path / f".{name}.partial"
        try:
            with open(partial, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if synced:
                    os.fsync(file.fileno())
            os.replace(partial, self.path / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _overwrite(
                self.path / name, text
            ):
                raise
        if synced:
            sync(self.path)

    def event(self, event: str, **more: object) -> None:
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        line = f"{json.dumps({'time': now, 'event': event, **more})}\n".encode()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        with closing(os.open(self.path / "events.jsonl", flags, 0o600)) as fd:
            _remove_incomplete_line(fd)
            if os.write(fd, line) < len(line):
                _remove_incomplete_line(fd)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def events(self) -> Iterator[dict[str, Any]]:
        """The events, the oldest first, without an incomplete last line."""
        with contextlib.suppress(FileNotFoundError), open(self.path / "events.jsonl") as file:
            for line in file:
                if (event := json_object(line)) is not None:
                    yield event

    # ---- checkpoints ----

    def all_checkpoints(self) -> list[Checkpoint]:
        """The complete checkpoints, the newest first; also if their metadata cannot be read."""
        result = []
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.checkpoints):
                if name.isdecimal():
                    result.append(_checkpoint(self.checkpoints / name))
        return sorted(result, key=lambda each: each.number, reverse=True)

    def prune(self, keep: int) -> None:
        """Remove all checkpoints that are not ``retained``."""
        checkpoints = self.all_checkpoints()
        kept = {each.number for each in retained(checkpoints, keep)}
        for old in checkpoints:
            if old.number in kept:
                continue
            with contextlib.suppress(OSError), open(f"{old.path}/{META}") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # it is being uploaded
            self.remove(old)

    def remove(self, old: Checkpoint) -> None:
        # Renamed first, since a partly removed checkpoint must not look complete.
        going = self.checkpoints / f"old-{old.number}"
        os.rename(old.path, going)
        shutil.rmtree(going, ignore_errors=True)

    @contextlib.contextmanager
    def pinned(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Prevent the removal of a checkpoint in this context. Raises ``FileNotFoundError``."""
        with open(f"{checkpoint.path}/{META}") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            os.stat(checkpoint.path)
            yield

    def make_temporary(self) -> Path:
        """Create the directory for temporary files, which the next run removes."""
        self.checkpoints.mkdir(mode=0o700, exist_ok=True)
        self.temporary.mkdir(mode=0o700, exist_ok=True)
        return self.temporary

    def sweep(self) -> None:
        """Remove incomplete and temporary files of a killed supervisor."""
        self.keep_progress(None)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.checkpoints):
                if not name.isdecimal():
                    shutil.rmtree(self.checkpoints / name, ignore_errors=True)


def retained(checkpoints: Sequence[Checkpoint], keep: int) -> list[Checkpoint]:
    """Of checkpoints, the newest first, those that are not removed: the newest ``keep``.

    If a signal to stop the job precedes all of these, the newest one without such a signal too: it
    is needed if the command has received the signal.
    """

    def is_certain(each: Checkpoint) -> bool:
        return each.stopped_by is None and each.options is not None

    kept = [*checkpoints[:keep]]
    if not any(map(is_certain, kept)):
        kept += [*filter(is_certain, checkpoints[keep:])][:1]
    return kept


def _command(body: Any) -> dict[str, Any]:
    command, directory, path = body["command"], body["directory"], body.get("path")
    if not isinstance(command, list) or not all(isinstance(each, str) for each in command):
        raise TypeError(f"command is {command!r}")
    if not isinstance(directory, str):
        raise TypeError(f"directory is {directory!r}")
    if not isinstance(path, str | None):
        raise TypeError(f"path is {path!r}")
    return {"command": command, "directory": directory, "path": path}


def _status(body: Any, storage: StorageStatus | None) -> JobStatus:
    known = {"state": State(body["state"]), "storage": storage}
    status = from_json(JobStatus, body, **known, progress=None)
    if status.state is State.ENDED and status.exit_code is None:
        raise TypeError("the job has ended, and exit_code is null")
    return status


def _read(path: Path) -> Any:
    """The JSON value in a file. ``OSError``, also if it is not a regular file; ``ValueError``."""
    try:
        return json.loads(read_regular(path, LARGEST))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _remove_incomplete_line(fd: int) -> None:
    """Remove what a kill or a full disk has left of the last line of a file."""
    size = end = os.fstat(fd).st_size
    while end > 0:
        begin = max(0, end - 4096)
        newline = os.pread(fd, end - begin, begin).rfind(b"\n")
        end = begin + newline + 1
        if newline >= 0:
            break
    if end < size:
        os.ftruncate(fd, end)


def _overwrite(path: Path, text: str) -> bool:
    """Overwrite a small file in place on a full disk; returns whether that was possible.

    A shorter text is padded with spaces, so that one write replaces the file.
    """
    data = text.encode()
    with contextlib.suppress(OSError), open(path, "r+b", buffering=0) as file:
        status = os.fstat(file.fileno())
        if len(data) > max(status.st_size, status.st_blocks * 512):
            return False  # only a part would be written
        data = data.ljust(status.st_size)
        if file.write(data) == len(data):
            os.fsync(file.fileno())
            return True
    return False


def without_former(body: Any) -> dict[str, Any]:
    """The fields of a stored checkpoint, without one that was always null. ``TypeError``."""
    return {name: value for name, value in dict(body).items() if name != "digest"}


def _checkpoint(path: Path) -> Checkpoint:
    try:
        body = without_former(_read(path / META))
        return from_json(Checkpoint, body, number=int(path.name), path=str(path))
    except (OSError, ValueError, TypeError):
        return Checkpoint(
            number=int(path.name), path=str(path), time=0, duration=0, frozen=0, bytes=0
        )


def sync(path: Path) -> None:
    """Sync a directory or a file to disk."""
    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)
