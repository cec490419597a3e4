"""A job: a command with checkpoints, as a picklable value."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .._rollback.option import Rollback
from .._support.held_signals import HeldSignals, blocked, held, until_ended
from .._support.signal_names import signal_name
from .._support.unpatched import close, readable, sleep
from .._system.capabilities import CAP_SYS_ADMIN, has_capability, is_root_of_host
from .._system.descriptors import above_stdio, is_inherited
from .._system.new_namespaces import end_with_parent
from ..archive.codecs import Compression
from ..errors import CriuError, OptionError, Problem, UnsupportedError
from ..options.criu_opts import CriuOpts
from .arguments import LISTS, RULES, listed, problems_of
from .directory import BUSY, CANNOT_RESTORE, INTERRUPTED, JobDirectory, State
from .notice import check_source
from .storage import check_place, check_url

FAILED = 1
"""Exit code of a supervisor that failed to start; the status has the reason."""

AGAIN = 78
"""Exit code of a supervisor after which the job is resumed at once, from an earlier checkpoint."""

UNTIL_FREE = 5.0
"""Seconds to wait for the processes of a killed supervisor to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """The result of a run of a job."""

    state: State
    """``ENDED``, ``INTERRUPTED``, ``CANNOT_RESTORE``; ``RUNNING`` if another process runs it."""
    exit_code: int
    """The exit code of the command (128 and the signal's number, if a signal ended it), or
    ``INTERRUPTED``, ``CANNOT_RESTORE`` or ``BUSY``."""
    message: str
    """The reason, as text."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command with checkpoints in a directory, from which it is resumed.

    A job can be pickled, so any executor can run it. All runs must have the same directory. It is
    local, or on a file system that supports flock(2) between hosts; with ``storage`` each host has
    a separate local directory.
    """

    directory: str | os.PathLike[str]
    """The directory of the job, for this job only; it is created if it does not exist."""
    command: Sequence[str | os.PathLike[str]]
    """The program and its arguments."""
    every: float = 600.0
    """Seconds between two checkpoints, after those at the start: see ``first``."""
    first: float = 1.0
    """Seconds from the start of the command to its first checkpoint. The pause between checkpoints
    then doubles until it is ``every``. A job that is interrupted before its first checkpoint starts
    from the beginning, and finds its files as it left them."""
    keep: int = 3
    """Number of checkpoints that are kept; one more if a signal to stop the job precedes all of
    these."""
    incremental: int | None = None
    """Largest number of incremental checkpoints in a row, which contain only the memory that has
    changed since the checkpoint before; 0 for none. A checkpoint is full, too, if the incremental
    ones since the last full one contain as much as that one, and after each start or resumption.
    Default: 10 if the job runs as root outside of user namespaces, and the kernel tracks changes of
    memory (soft-dirty; ``feature_check().mem_track``); else 0."""
    also: Iterable[str | os.PathLike[str]] = ()
    """Patterns of files that are saved even if they are closed at the time of a checkpoint, as in
    :class:`~pycriu_native.Rollback`. Files that are open for writing are always saved."""
    grace: float = 30.0
    """Time limit of a last checkpoint after a signal, or after a notice without a time; seconds."""
    notice: str | None = None
    """Shell command or URL that announces an interruption by exit status 0 or HTTP status 200; its
    text can contain the time. It is polled every 5 seconds."""
    options: CriuOpts | None = None
    """Further options of the dumps, such as ``link_remap``; not those that a job sets itself, such
    as ``images_directory``. Required options are determined by a preflight."""
    cwd: str | os.PathLike[str] | None = None
    """Working directory of the command; default: that of the caller."""
    interrupted_code: int = INTERRUPTED
    """Exit code of an interrupted job."""
    or_start_over: bool = False
    """Start from the beginning if there are checkpoints but none can be restored. A wrong key of
    ``decrypt_with``, or a CRIU that cannot be run, is no reason."""
    unprivileged: bool | None = None
    """Run in a new user namespace, without root. Default: if the caller lacks CAP_SYS_ADMIN. Root
    of a user namespace has it, and runs the job in that namespace."""
    storage: str | os.PathLike[str] | None = None
    """URL of fsspec (``s3://bucket/job1``), or a path on a shared file system, to which checkpoints
    are uploaded. A lease in the storage ensures that one host at a time runs the job. Needs the
    extra ``storage``, and the package of the file system (s3fs, gcsfs, sshfs). ``directory`` is
    then local to each host, with the same path on all of them."""
    lease: float = 60.0
    """Seconds without a renewal of the lease after which another host can take over. A host that
    cannot reach the storage for half of this time ends the job."""
    compress: Compression = "gzip"
    """Compression of uploads: ``"gzip"``, ``"zstd"`` or ``"none"``."""
    encrypt_to: Iterable[str] = ()
    """age recipients or ssh public keys to encrypt uploads for. Needs the extra ``archive``."""
    decrypt_with: Iterable[str] = field(default=(), repr=False)
    """age identities or ssh private keys to decrypt uploads with; one belongs to ``encrypt_to``."""

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in LISTS:
            put(name, listed(name, getattr(self, name)))
        if problems := problems_of({name: getattr(self, name) for name in RULES}):
            raise OptionError(problems, verb="run")
        put("directory", _absolute(self.directory))
        put("command", tuple(os.fspath(each) for each in self.command))
        put("also", Rollback(also=self.also).also)
        put("cwd", None if self.cwd is None else _absolute(self.cwd))
        if self.storage is not None:
            put("storage", _absolute_storage(os.fspath(self.storage)))
        for name in ("encrypt_to", "decrypt_with"):
            if getattr(self, name) and self.storage is None:
                problems.append(Problem(name, "…", "is accepted with storage only"))
        if self.decrypt_with and not self.encrypt_to:
            rule = "is accepted with encrypt_to only: other uploads are not encrypted"
            problems.append(Problem("decrypt_with", "…", rule))
        if self.interrupted_code in (CANNOT_RESTORE, BUSY):
            rule = "this code already has another meaning"
            problems.append(Problem("interrupted_code", self.interrupted_code, rule))
        if problems:
            raise OptionError(problems, verb="run")

    def run(self, *, wait: float | None = UNTIL_FREE) -> JobResult:
        """Start the command, or resume it; return when it has ended or was interrupted.

        If another process runs the job, on this or another host, wait at most ``wait`` seconds;
        None: without limit. The default is enough for the processes of a killed supervisor to end.

        If this is the main thread, SIGTERM, SIGINT, SIGHUP and SIGUSR1 to this process take a last
        checkpoint and end the run; a signal before the start prevents it. If this process ends, the
        command ends too.

        Raises ``OptionError`` if the directory belongs to another command or to a job with
        ``storage`` that this one lacks, the command of ``notice`` does not exist, or for an unknown
        file system of ``storage`` or key of ``encrypt_to``, ``UnsupportedError`` if a package for
        them is not installed or if ``incremental`` is not possible here, and ``ImagesError`` if the
        directory cannot be used.
        """
        with held() as signals:
            return self._run(math.inf if wait is None else wait, signals)

    __call__ = run

    def _run(self, wait: float, signals: HeldSignals) -> JobResult:
        until = time.monotonic() + wait
        command = [*map(str, self.command)]
        cwd = str(self.cwd or _here())
        if self.storage is not None:
            from .remote_checkpoints import check_codecs  # few jobs have a storage

            check_url(str(self.storage))
            check_place(str(self.storage), str(self.directory))
            check_codecs(self.compress, tuple(self.encrypt_to), tuple(self.decrypt_with))
        if self.notice is not None:
            check_source(self.notice)
        if self.incremental:
            self._check_incremental()
        directory = JobDirectory(self.directory)
        directory.make()
        directory.check_command(command)
        directory.check_storage(None if self.storage is None else str(self.storage))
        lock = directory.lock(wait, stopped=lambda: signals.stopped is not None)
        if lock is None:
            message = f"another supervisor runs the job in {directory.path}"
            return JobResult(state=State.RUNNING, exit_code=BUSY, message=message)
        try:
            directory.take_command(command, cwd)
            code = 0 if directory.status().state is State.ENDED else AGAIN
            while code == AGAIN or (code == BUSY and time.monotonic() + UNTIL_FREE < until):
                if code == BUSY:
                    sleep(UNTIL_FREE)
                code = self._supervised(directory, lock, signals)
            if code == BUSY:
                message = directory.storage_message()
                return JobResult(state=State.RUNNING, exit_code=BUSY, message=message)
        finally:
            close(lock)
        directory.wait_until_free(UNTIL_FREE)
        status = directory.status()
        if code == FAILED:
            raise CriuError(f"{directory.path}: {status.message}", verb="run")
        if code and status.state is not State.ENDED:
            message = f"the supervisor was ended {how_ended(code)}; the job can be run again"
            if self.storage is not None:
                message += f"; storage {self.storage}: {directory.storage_message()}"
            code = self.interrupted_code
            return JobResult(state=State.INTERRUPTED, exit_code=code, message=message)
        return _result(directory, self.interrupted_code)

    def _supervised(self, directory: JobDirectory, lock: int, signals: HeldSignals) -> int:
        """Run the supervisor; returns its exit code."""
        if signals.stopped is not None:
            directory.not_begun(signals.stopped)
            return 0
        # Closed when this process ends, which the supervisor detects.
        alive, ours = map(above_stdio, os.pipe())
        try:
            spec = {**self._spec(), "lock": lock, "alive": alive}
            process = start_with("namespaces" if self.storage is None else "lease_holder", spec)
        finally:
            close(alive)
        try:
            with signals.passed_on(process.pid) as end:
                until_ended(end)
            return process.wait()
        finally:
            close(ours)
            process.wait()

    def _check_incremental(self) -> None:
        from .increments import lack  # few jobs set it

        rule = "needs a job outside of user namespaces"
        why = rule if self._rights()["user_namespace"] else lack()
        if why is not None:
            raise UnsupportedError([Problem("incremental", self.incremental, why)], verb="run")

    def _rights(self) -> dict[str, bool]:
        """Whether the job needs a user namespace, and CRIU its option ``unprivileged``."""
        if self.unprivileged is not None:
            return dict.fromkeys(("user_namespace", "unprivileged"), self.unprivileged)
        namespace = not has_capability(CAP_SYS_ADMIN)
        return {"user_namespace": namespace, "unprivileged": namespace or not is_root_of_host()}

    def _spec(self) -> dict[str, Any]:
        """The job as JSON data, for its supervisor."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        options = {} if self.options is None else self.options.to_dict()
        return {**values, **self._rights(), "options": options, "token": 0}


def _here() -> str:
    """The working directory of the caller. ``OptionError`` if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        rule = "the working directory of this process was removed; change to another one"
        raise OptionError([Problem("cwd", None, rule)], verb="run") from None


def _absolute(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return os.path.abspath(text if os.path.isabs(text) else os.path.join(_here(), text))


def _absolute_storage(text: str) -> str:
    """A storage whose path of this host is absolute; an empty one is refused by ``check_url``."""
    path = text.removeprefix("file://").removeprefix("local://")
    if not path or "://" in path or "::" in path or (path != text and os.path.isabs(path)):
        return text
    return text.removesuffix(path) + _absolute(path)


def _result(directory: JobDirectory, interrupted: int) -> JobResult:
    status = directory.status()
    code = interrupted
    if status.state is State.CANNOT_RESTORE:
        code = CANNOT_RESTORE
    elif status.state is State.ENDED:
        assert status.exit_code is not None
        code = status.exit_code if status.exit_code >= 0 else 128 - status.exit_code
    return JobResult(state=status.state, exit_code=code, message=status.message)


def how_ended(code: int) -> str:
    """How a process has ended, as text; a negative code is a signal."""
    return f"by {signal_name(-code)}" if code < 0 else f"with {code}"


def start_with(module: str, spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a process of the job, which reads ``spec`` from standard input, since it can have keys.

    The process starts with blocked signals, and unblocks them when it has installed its handlers.
    Output that is closed here is discarded.
    """
    out, errors = (None if is_inherited(fd) else subprocess.DEVNULL for fd in (1, 2))
    with open(os.memfd_create("job"), "w+") as file:
        json.dump(spec, file)
        file.seek(0)
        with blocked():
            return subprocess.Popen(
                [sys.executable, "-P", "-m", f"pycriu_native.jobs.{module}"],
                pass_fds=(spec["lock"], spec["alive"]),
                stdin=file,
                stdout=out,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )


def read_spec() -> dict[str, Any]:
    """Read the argument of ``start_with``, and replace standard input by /dev/null.

    This process ends with its parent, and now if the process that runs the job has ended.
    """
    spec: dict[str, Any] = json.load(sys.stdin.buffer)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    close(nothing)
    end_with_parent()
    if readable(spec["alive"]):
        sys.exit(FAILED)
    return spec


def print_message(message: str) -> None:
    """Print a message on the standard error of the process that runs the job, if it can be."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"pycriu-native: {message}\n")
        sys.stderr.flush()
