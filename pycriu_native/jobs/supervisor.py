"""The supervisor of a job: starts or resumes the command, and takes its checkpoints."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from dataclasses import replace
from typing import Any

from .._rollback.option import Rollback
from .._rollback.put_back import RollBack
from .._rollback.saved_files import save
from .._support.unpatched import readable
from .._system.host import boot_id
from .._system.process import stat_of
from .._system.process_tree import process_tree
from ..errors import CriuError, ImagesError, WorkerDiedError
from ..options.criu_opts import CriuOpts
from .checkpoints import is_helper, resume, take
from .directory import Checkpoint, JobDirectory, State
from .job import CHECKPOINTING, FAILED, STOPPING
from .notice import NoticeWatch

FIRST_PID = 1000
"""The supervisor's own processes get pids below this, so that they do not use one that a restore
needs."""

DEATHS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP)
"""Signals that mean an interruption of the command, not its own end."""

FIRST = 0.1
"""The fraction of the interval until the first checkpoint."""

ATTEMPTS = 3
"""Number of attempts of a restore that fails for another reason than its images."""

MARGIN = 1.25
"""Factor for the expected duration of the next checkpoint, from those before."""


class Supervisor:
    """One run of a job, as the first process of a pid namespace."""

    def __init__(
        self,
        spec: dict[str, Any],
        directory: JobDirectory,
        signals: deque[int],
        outside: int,
        start: int,
    ) -> None:
        """``outside`` is this process's pid in the outer namespace, ``start`` its start time."""
        self._spec = spec
        self._directory = directory
        self._options = CriuOpts.from_dict(spec["options"])
        if spec["unprivileged"]:
            self._options = CriuOpts.from_dict({**spec["options"], "unprivileged": True})
        self._also: tuple[str, ...] = tuple(spec["also"])
        self._alive: int = spec["alive"]
        self._signals = signals
        self._durations: deque[float] = deque(maxlen=3)
        self._status = replace(
            directory.status(),
            supervisor=outside,
            supervisor_start=start,
            boot_id=boot_id(),
            host=os.uname().nodename,
            stopped_by=None,
        )
        self._pid = 0
        self._criu_was_lost = False
        """Whether the last checkpoint failed because CRIU was killed: the command can be killed by
        that, which counts as an interruption."""
        self._stop_by: float | None = None
        """Latest end of the job, on the monotonic clock; None: no end was requested."""

    def run(self) -> int:
        """Exit code 0: the status has the end of the job; 1: the run has not begun."""
        wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for number in (*STOPPING, CHECKPOINTING, signal.SIGCHLD):
            signal.signal(number, self._signalled)
        with NoticeWatch(self._spec["notice"], woken) as notice:
            try:
                self._directory.sweep()
                if not self._begin():
                    return 0
                return self._supervise(wake, notice)
            except (CriuError, OSError) as error:
                self._report("failed", str(error))
                return FAILED

    def _signalled(self, number: int, _: object) -> None:
        self._signals.append(number)

    # ---- the beginning ----

    def _begin(self) -> bool:
        """Start or resume the command; False if neither is possible."""
        checkpoints = self._directory.all_checkpoints()
        for each in checkpoints:
            if not self._resume(each):
                continue
            self._set_last_pid(max(FIRST_PID, each.last_pid))
            self._change(state=State.RUNNING, resumed=self._status.resumed + 1)
            self._report("resumed", f"resumed from checkpoint {each.number}", number=each.number)
            return True
        if checkpoints and not self._spec["or_start_over"]:
            failure = self._status.message
            self._change(state=State.CANNOT_RESTORE)
            self._report(
                "cannot be restored",
                f"none of {len(checkpoints)} checkpoints can be restored here; the oldest: "
                f"{failure}; nothing was started (--or-start-over starts from the beginning)",
            )
            return False
        self._start(again=self._status.started is not None, lost=len(checkpoints))
        return True

    def _resume(self, checkpoint: Checkpoint) -> bool:
        """Restore a checkpoint; False if that fails. Repeated unless the images are the cause."""
        for _ in range(ATTEMPTS):
            try:
                self._pid = resume(self._directory, checkpoint)
                return True
            except (CriuError, OSError, ValueError) as error:
                self._report("restore failed", f"checkpoint {checkpoint.number}: {error}")
                if isinstance(error, ImagesError):
                    break
        return False

    def _start(self, *, again: bool, lost: int) -> None:
        known = self._directory.command()
        assert known is not None
        outputs = [self._directory.path / name for name in ("stdout", "stderr")]
        self._roll_back_to_start(outputs)
        self._set_last_pid(FIRST_PID)
        files = [open(path, "ab") for path in outputs]
        try:
            command = subprocess.Popen(
                known["command"],
                cwd=known["directory"],
                stdin=subprocess.DEVNULL,
                stdout=files[0],
                stderr=files[1],
                start_new_session=True,
            )
        finally:
            for file in files:
                file.close()
        command.returncode = 0  # it is reaped here, and not by its object
        self._pid = command.pid
        now = time.time()
        if again:
            self._change(state=State.RUNNING, restarted=self._status.restarted + 1)
            why = f"none of {lost} checkpoints can be restored" if lost else "it had no checkpoint"
            self._report("started over", f"started again from the beginning: {why}")
        else:
            self._change(state=State.RUNNING, started=now)
            self._report("started", "started")

    def _roll_back_to_start(self, outputs: list[Any]) -> None:
        """Save the files before the first start; before another start, restore them."""
        start = self._directory.start
        if start.is_dir():
            at = os.open(start, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                rolled_back = RollBack(at)
                try:
                    rolled_back.put_back(lambda: None)
                    rolled_back.succeeded()
                finally:
                    rolled_back.close()
            finally:
                os.close(at)
            return
        for path in outputs:
            path.touch(mode=0o600)
        partial = self._directory.path / "start.partial"
        _remove(partial)
        partial.mkdir(mode=0o700)
        at = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            save(at, (), (*map(_pattern, outputs), *self._also), lambda: None)
            os.fsync(at)
        finally:
            os.close(at)
        os.rename(partial, start)

    def _set_last_pid(self, number: int) -> None:
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(number))

    # ---- while it runs ----

    def _supervise(self, wake: int, notice: NoticeWatch) -> int:
        every = float(self._spec["every"])
        due = time.monotonic() + every * (FIRST if not self._status.checkpoints else 1)
        while True:
            ended = self._reap()
            if ended is not None:
                self._ended(ended)
                return 0
            if readable(self._alive):
                return 0  # the process that runs the job has ended
            if self._stop_by is None and notice.left is not None:
                left = min(notice.left, float(self._spec["grace"])) if notice.vague else notice.left
                self._stop_by = time.monotonic() + left
                self._change(stopped_by="notice")
                self._report("notice", f"a notice of interruption in {left:.0f} s: {notice.text}")
            if self._stop_by is not None:
                self._last_checkpoint()
                return 0
            asked = CHECKPOINTING in self._take_signals()
            if self._stop_by is None and (asked or time.monotonic() >= due):
                self._checkpoint()
                due = time.monotonic() + every
                continue
            if self._stop_by is None:
                pause = max(0.0, min(due - time.monotonic(), 5.0))
                readable(wake, self._alive, seconds=pause)
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)

    def _take_signals(self) -> set[int]:
        """Handle the received signals. One that stops the job sets the time of its end."""
        result = set()
        while self._signals:
            number = self._signals.popleft()
            result.add(number)
            if number in STOPPING and self._stop_by is None:
                self._stop_by = time.monotonic() + float(self._spec["grace"])
                self._change(stopped_by=signal.Signals(number).name)
                self._report("stopping", f"{signal.Signals(number).name} was received")
        return result

    def _checkpoint(self, *, last: bool = False, deadline: float | None = None) -> bool:
        began = time.monotonic()
        try:
            made = take(
                self._directory,
                self._pid,
                self._options,
                Rollback(also=self._also, complete=self._spec["storage"] is not None),
                token=int(self._spec["token"]),
                last=last,
                deadline=deadline,
            )
        except (CriuError, OSError, ValueError) as error:
            seen = stat_of(self._pid)
            if seen is None or seen.has_ended:
                self._criu_was_lost |= isinstance(error, WorkerDiedError)
                return False  # it has ended meanwhile
            self._criu_was_lost = isinstance(error, WorkerDiedError)
            self._change(failures=self._status.failures + 1)
            self._report("checkpoint failed", str(error))
            return False
        took = time.monotonic() - began
        self._criu_was_lost = False
        self._durations.append(took)
        self._directory.prune(int(self._spec["keep"]))
        self._change(
            checkpoints=self._status.checkpoints + 1,
            last_success=time.time(),
            last_duration=took,
            last_frozen=made.frozen,
            last_bytes=made.bytes,
        )
        self._report("checkpoint", _words(made, took), number=made.number, seconds=took)
        if took * MARGIN > float(self._spec["grace"]):
            self._report(
                "grace is short",
                f"a checkpoint takes {took:.1f} s: a last one may not be complete within the "
                f"{self._spec['grace']:g} s that a signal leaves (grace)",
            )
        return True

    def _last_checkpoint(self) -> None:
        assert self._stop_by is not None
        left = self._stop_by - time.monotonic()
        expected = max(self._durations, default=0.0) * MARGIN
        if expected <= left and left > 0:
            self._checkpoint(last=True, deadline=left)
        else:
            self._report(
                "no time",
                f"no last checkpoint: it would take about {expected:.1f} s, and {left:.1f} s are "
                "left",
            )
        ended = self._reap()
        if ended is not None and ended >= 0:
            self._ended(ended)  # it ended before the checkpoint
            return
        self._change(state=State.INTERRUPTED)
        count = len(self._directory.all_checkpoints())
        self._report("interrupted", f"interrupted; {count} checkpoints to resume from")

    # ---- the end ----

    def _reap(self) -> int | None:
        """The exit code of the command, if it has ended. Its orphans are reaped, too."""
        for pid in process_tree(os.getpid())[1:]:
            seen = stat_of(pid)
            if seen is None or not seen.has_ended or seen.parent != os.getpid():
                continue
            if pid != self._pid and is_helper(pid):
                continue  # the process that started it waits for it
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(pid, os.WNOHANG)
                if pid == self._pid:
                    return os.waitstatus_to_exitcode(status)
        return None

    def _ended(self, code: int) -> None:
        if code < 0 and (-code in DEATHS or self._criu_was_lost):
            self._change(state=State.INTERRUPTED)
            name = signal.Signals(-code).name
            self._report("interrupted", f"the command was ended by {name}; it can be resumed")
            return
        self._change(state=State.ENDED, exit_code=code)
        self._report("ended", f"the command has ended with {code}", exit_code=code)

    def _change(self, **more: Any) -> None:
        self._status = replace(self._status, **more)

    def _report(self, event: str, message: str, **more: object) -> None:
        """Write an event and the status."""
        self._change(message=message)
        self._directory.event(event, message=message, **more)
        self._directory.keep(self._status)


def _words(made: Checkpoint, took: float) -> str:
    return (
        f"checkpoint {made.number}: {made.bytes / 2**20:.1f} MiB in {took:.2f} s, of which the "
        f"command was frozen for {made.frozen:.2f} s"
    )


def _pattern(path: Any) -> str:
    import glob

    return glob.escape(str(path))


def _remove(path: Any) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
