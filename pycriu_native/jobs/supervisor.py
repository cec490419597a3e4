"""The supervisor of a job: starts or resumes the command, and takes its checkpoints."""

from __future__ import annotations

import contextlib
import errno
import glob
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from dataclasses import replace
from typing import Any

from .._calls.progress_state import Progress
from .._rollback.option import Rollback
from .._rollback.put_back import RollBack
from .._rollback.saved_files import save
from .._support.held_signals import CHECKPOINTING, STOPPING, HeldSignals
from .._support.signal_names import signal_name
from .._support.unpatched import Thread, readable, sleep
from .._system.descriptors import opened_directory
from .._system.host import boot_id
from .._system.process import stat_of
from .._system.process_tree import process_tree
from ..errors import CriuError, ImagesError, WorkerDiedError
from ..options.criu_opts import CriuOpts
from .checkpoints import criu_failure, is_helper, resume, take
from .directory import NOT_BEGUN, Checkpoint, CheckpointProgress, JobDirectory, State, sync
from .increments import Increments
from .job import AGAIN, FAILED, how_ended, print_message
from .metrics import BEAT
from .notice import NoticeWatch
from .schedule import Schedule

FIRST_PID = 1000
"""Pids of the supervisor's own processes are lower, so that they use none that a restore needs."""

DEATHS = (*STOPPING, CHECKPOINTING, signal.SIGKILL)
"""Signals that count as an interruption if they end the command."""

UNTIL_SIGNAL = 0.2
"""Seconds within which a signal that was sent to all processes is also received here."""

NO_NOTICE = "a notice of interruption would not be received"

KEPT_EVERY = 0.2
"""Seconds between two attempts to write the last status."""

CLOCK = 1.0
"""Largest difference in seconds between the clocks of the host and of a file system."""

ATTEMPTS = 3
"""Number of attempts of a restore that fails for a reason other than its images."""

TEMPORARY = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Errors of a restore that are not due to the checkpoint, and would also prevent another one."""

MARGIN = 1.25
"""Factor for the expected duration of the next checkpoint, relative to earlier ones."""


class Supervisor:
    """One run of a job, in the init process of a pid namespace."""

    def __init__(
        self,
        spec: dict[str, Any],
        directory: JobDirectory,
        signals: HeldSignals,
        outside: int,
        start: int,
    ) -> None:
        """``outside`` is this process's pid in the outer namespace, ``start`` its start time."""
        self._spec = spec
        self._directory = directory
        rights = {"unprivileged": True} if spec["unprivileged"] else {}
        self._options = CriuOpts.from_dict({**spec["options"], **rights})
        self._also: tuple[str, ...] = tuple(spec["also"])
        self._alive: int = spec["alive"]
        self._signals = signals
        self._increments = Increments(0 if spec["user_namespace"] else spec["incremental"])
        self._durations: deque[float] = deque(maxlen=3)
        self._status = replace(
            directory.status(),
            supervisor=outside,
            supervisor_start=start,
            boot_id=boot_id(),
            host=os.uname().nodename,
            stopped_by=None,
        )
        self._changed_since = (self._status.started or time.time()) - CLOCK
        """Files that were changed after this time may be temporary files of the command. On another
        host, this is the time of its first run: a restore creates them there."""
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._kept = True
        """Whether the current status is written."""
        self._pid = 0
        self._resumed_from: Checkpoint | None = None
        """The checkpoint from which the command was resumed, until there is a later one."""
        self._lacks_resources = False
        """Whether the last restore failed with one of ``TEMPORARY``."""
        self._again = False
        """Whether to resume the job from an earlier checkpoint."""
        self._criu_was_lost = False
        """Whether the last checkpoint failed because CRIU was killed. This can kill the command,
        which then counts as an interruption."""
        self._failure = ""
        """Why the last checkpoint failed; empty if it did not."""
        self._notice_fails = False
        self._stop_by: float | None = None
        """Latest end of the job, on the monotonic clock; None: no end was requested."""

    def run(self) -> int:
        """Run the job. Returns 0 or ``AGAIN``, with the outcome in the status; 1: not started."""
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        Thread(target=self._beat, name="heartbeat", daemon=True).start()
        with NoticeWatch(self._spec["notice"], self._woken) as notice:
            try:
                os.chdir(self._directory.path)  # for_criu
                self._directory.sweep()
                tempfile.tempdir = str(self._directory.make_temporary())
                if self._begin():
                    self._supervise(notice)
                return self._keep_at_last() or (AGAIN if self._again else 0)
            except (CriuError, OSError) as error:
                self._report("failed", str(error))
                return FAILED

    def _beat(self) -> None:
        while True:
            self._directory.beat()
            sleep(BEAT)

    # ---- start ----

    def _begin(self) -> bool:
        """Start or resume the command; False if neither is possible, or a signal was received."""
        known = self._directory.all_checkpoints()
        checkpoints = [each for each in known if not self._status.doubts(each)]
        for each in checkpoints:
            if not self._resume(each):
                if self._signals.stopped is not None or self._lacks_resources:
                    break
                continue
            self._set_last_pid(max(FIRST_PID, each.last_pid))
            self._resumed_from = each
            self._change(state=State.RUNNING, resumed=self._status.resumed + 1)
            self._report("resumed", f"resumed from checkpoint {each.number}", number=each.number)
            return True
        if self._signals.stopped is not None:
            self._take_signals()
            self._change(state=State.INTERRUPTED)
            self._report("interrupted", f"{self._status.stopped_by} {NOT_BEGUN}")
            return False
        failure = self._status.message
        if self._lacks_resources:
            self._change(state=State.INTERRUPTED)
            self._report("interrupted", f"{failure}; nothing was started, and it can be resumed")
            return False
        # If the first checkpoint is doubted, so are all: there was none before the signal.
        restorable = checkpoints or (known and self._status.doubted != 1)
        fails = criu_failure() if restorable and self._spec["or_start_over"] else ""
        if restorable and (fails or not self._spec["or_start_over"]):
            # With another CRIU, or on another host, they can be restored.
            why = f"CRIU does not work here: {fails}" if fails else f"the oldest: {failure}"
            hint = "" if fails else " (--or-start-over starts from the beginning)"
            self._change(state=State.CANNOT_RESTORE)
            none = f"none of {len(known)} checkpoints can be restored here"
            self._report("cannot be restored", f"{none}; {why}; nothing was started{hint}")
            return False
        self._start(lost=len(known))
        return True

    def _resume(self, checkpoint: Checkpoint) -> bool:
        """Restore a checkpoint; False if that fails. Repeated, unless the images are the cause."""
        for _ in range(ATTEMPTS):
            if self._signals.stopped is not None:
                break
            try:
                self._pid = resume(self._directory, checkpoint)
                return True
            except (CriuError, OSError, ValueError) as error:
                self._report("restore failed", f"checkpoint {checkpoint.number}: {error}")
                self._lacks_resources = getattr(error, "errno", None) in TEMPORARY
                if isinstance(error, ImagesError):
                    break
        return False

    def _start(self, *, lost: int) -> None:
        """Start the command; ``lost`` is the number of checkpoints."""
        again = self._status.started is not None
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
        except OSError as error:
            if not again:  # the job was never started
                shutil.rmtree(self._directory.start, ignore_errors=True)
            what = f"the command {known['command'][0]!r} cannot be started"
            if error.filename == known["directory"]:
                what = f"the working directory of the command, {error.filename}, cannot be entered"
            raise CriuError(f"{what}: {error.strerror}", verb="run") from None
        finally:
            for file in files:
                file.close()
        command.returncode = 0  # _reap waits for it, not the Popen object
        self._pid = command.pid
        if again:
            self._change(state=State.RUNNING, restarted=self._status.restarted + 1)
            why = "there is no checkpoint"
            if self._status.doubted is not None:
                why += " from before the signal"
            elif lost:
                why = f"none of {lost} checkpoints can be restored"
            self._report("started over", f"started again from the beginning: {why}")
        else:
            self._change(state=State.RUNNING, started=time.time())
            self._report("started", "started")

    def _roll_back_to_start(self, outputs: list[Any]) -> None:
        """Before the first start, save the files; before a later start, restore them."""
        start = self._directory.start
        if start.is_dir():
            with opened_directory(start) as at, contextlib.closing(RollBack(at)) as rolled_back:
                rolled_back.put_back(lambda: None)
                rolled_back.succeeded()
            return
        for path in outputs:
            path.touch(mode=0o600)
            os.truncate(path, 0)  # a checkpoint of another host can have restored it
        partial = self._directory.path / "start.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        with opened_directory(partial) as at:
            also = (*(glob.escape(str(path)) for path in outputs), *self._also)
            save(at, (), Rollback(also=also, ignore=self._ignored()), lambda: None)
        for each in (*partial.iterdir(), partial):  # it must be complete after a power failure
            sync(each)
        os.rename(partial, start)
        sync(self._directory.path)

    def _set_last_pid(self, number: int) -> None:
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(number))

    # ---- while it runs ----

    def _supervise(self, notice: NoticeWatch) -> None:
        first = float(self._spec["first"]) if self._resumed_from is None else None
        schedule = Schedule(float(self._spec["every"]), first)
        while True:
            ended = self._reap()
            if ended is not None:
                self._ended(ended)
                return
            if readable(self._alive):
                return  # the process that runs the job has ended
            self._keep()
            self._check_notice(notice)
            if self._stop_by is None and notice.left is not None:
                left = float(self._spec["grace"]) if notice.left == math.inf else notice.left
                self._stop_by = time.monotonic() + left
                self._change(stopped_by="notice")
                self._report("notice", f"a notice of interruption in {left:.0f} s: {notice.text}")
            if self._stop_by is not None:
                self._last_checkpoint()
                return
            requested = CHECKPOINTING in self._take_signals()
            if self._stop_by is not None:
                continue
            if requested or schedule.left <= 0:
                began = time.monotonic()
                self._checkpoint()
                schedule.attempted(time.monotonic() - began)
            else:
                self._wait(min(schedule.left, 5.0))

    def _check_notice(self, notice: NoticeWatch) -> None:
        """Report that attempts to get a notice begin or cease to fail."""
        failure = notice.failure
        if failure and not self._notice_fails:
            print_message(f"{NO_NOTICE}: {failure}")
            self._report("notice fails", f"{NO_NOTICE}: {failure}")
        elif not failure and self._notice_fails:
            self._report("notice works", "a notice of interruption can be received again")
        self._notice_fails = bool(failure)

    def _wait(self, seconds: float) -> None:
        """Wait for a signal, a notice or the end of the process that runs the job, with a limit."""
        readable(self._wake, self._alive, seconds=seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def _take_signals(self) -> set[int]:
        """Handle the received signals. One that stops the job sets ``_stop_by``."""
        result = set()
        for number, when in self._signals.take():
            result.add(number)
            if number in STOPPING and self._stop_by is None:
                self._stop_by = when + float(self._spec["grace"])
                self._change(stopped_by=signal.Signals(number).name)
                self._report("stopping", f"{signal.Signals(number).name} was received")
        return result

    def _checkpoint(self, *, last: bool = False, deadline: float | None = None) -> bool:
        began, moment = time.monotonic(), time.time()

        def on_progress(state: Progress) -> None:
            values = {name: getattr(state, name) for name in ("phase", "done", "total", "left")}
            self._directory.keep_progress(CheckpointProgress(started=moment, **values))

        self._report("checkpoint begun", f"a {'last ' if last else ''}checkpoint is being taken")
        try:
            made = take(
                self._directory,
                self._pid,
                self._options,
                self._rollback(),
                self._increments,
                signals=self._signals,
                token=int(self._spec["token"]),
                last=last,
                deadline=deadline,
                on_progress=on_progress,
            )
        except (CriuError, OSError, ValueError) as error:
            seen = stat_of(self._pid)
            if (seen is None or seen.has_ended) and not (last and _was_killed(self._pid)):
                self._criu_was_lost |= isinstance(error, WorkerDiedError)
                return False  # the command has ended meanwhile
            self._criu_was_lost = isinstance(error, WorkerDiedError)
            self._change(failures=self._status.failures + 1)
            if str(error) != self._failure:
                print_message(f"a checkpoint failed: {error}")
            self._failure = str(error)
            self._report("checkpoint failed", self._failure)
            return False
        finally:
            self._directory.keep_progress(None)
        took = time.monotonic() - began
        self._criu_was_lost = False
        self._failure = ""
        self._durations.append(took)
        self._resumed_from = None
        self._change(
            doubted=None,
            checkpoints=self._status.checkpoints + 1,
            incremental=self._status.incremental + (made.parents > 0),
            last_success=time.time(),
            last_duration=took,
            last_frozen=made.frozen,
            last_bytes=made.bytes,
            last_parents=made.parents,
        )
        self._report("checkpoint", _text(made, took), number=made.number, seconds=took)
        if self._increments.refusal:
            why = f"checkpoint {made.number} is full: {self._increments.refusal}"
            self._report("not incremental", why, number=made.number)
        try:
            self._directory.prune(int(self._spec["keep"]))
        except OSError as error:
            self._report("not removed", f"older checkpoints cannot be removed: {error}")
        if took * MARGIN > float(self._spec["grace"]):
            self._report(
                "grace is short",
                f"a checkpoint takes {took:.1f} s: a last one may not be complete within the time "
                f"limit after a signal, {self._spec['grace']:g} s (grace)",
            )
        return True

    def _rollback(self) -> Rollback:
        """How the files are saved: with their contents, but appended data only once."""
        newest = self._directory.all_checkpoints()[:1]
        return Rollback(
            also=self._also,
            ignore=self._ignored(),
            complete=True,
            link_from=newest[0].path if newest else None,
            changed_since=self._changed_since,
        )

    def _ignored(self) -> list[Any]:
        """Directories whose files are not those of the command."""
        storage = str(self._spec["storage"] or "").removeprefix("file://").removeprefix("local://")
        return [self._directory.path, *([storage] if storage.startswith("/") else [])]

    def _last_checkpoint(self) -> None:
        assert self._stop_by is not None
        left = self._stop_by - time.monotonic()
        expected = max(self._durations, default=0.0) * MARGIN
        if expected <= left and left > 0:
            self._checkpoint(last=True, deadline=left)
        else:
            why = f"it would take about {expected:.1f} s, and {max(left, 0.0):.1f} s are left"
            self._report("no time", f"no last checkpoint: {why}")
        ended = self._reap()
        if ended is not None and ended >= 0:
            self._ended(ended)  # before the checkpoint
            return
        self._change(state=State.INTERRUPTED)
        count = len(self._directory.all_checkpoints())
        why = f"; the last one failed: {self._failure}" if self._failure else ""
        self._report("interrupted", f"interrupted; checkpoints to resume from: {count}{why}")

    # ---- end ----

    def _reap(self) -> int | None:
        """The exit code of the command, if it has ended. Orphaned processes are reaped, too."""
        for pid in process_tree(os.getpid())[1:]:
            seen = stat_of(pid)
            if seen is None or not seen.has_ended or seen.parent != os.getpid():
                continue
            if pid != self._pid and is_helper(pid):
                continue  # another part of the supervisor waits for it
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(pid, os.WNOHANG)
                if pid == self._pid:
                    return os.waitstatus_to_exitcode(status)
        return None

    def _ended(self, code: int) -> None:
        interrupted = self._was_interrupted(code)
        if (doubted := self._doubted(code)) is not None:
            token = int(self._spec["token"])
            self._again = True
            self._change(state=State.INTERRUPTED, doubted=doubted.number, doubted_token=token)
            self._report(
                "checkpoint doubted",
                f"the command was ended {how_ended(code)} after the resumption from checkpoint "
                f"{doubted.number}, before which it may have received {doubted.stopped_by}; it is "
                "resumed from an earlier one",
                number=doubted.number,
            )
            return
        if interrupted:
            after = f" after {self._status.stopped_by}" if self._stop_by is not None else ""
            self._change(state=State.INTERRUPTED)
            message = f"the command was ended {how_ended(code)}{after}; it can be resumed"
            self._report("interrupted", message)
            return
        self._change(state=State.ENDED, exit_code=code)
        how = "was ended" if code < 0 else "has ended"
        self._report("ended", f"the command {how} {how_ended(code)}", exit_code=code)

    def _was_interrupted(self, code: int) -> bool:
        """Whether the command ended because of a signal, which it may have handled."""
        if code == 0:
            return False
        until = time.monotonic() + UNTIL_SIGNAL
        self._take_signals()
        while self._stop_by is None and (remaining := until - time.monotonic()) > 0:
            self._wait(remaining)
            self._take_signals()
        if -code in DEATHS or (code < 0 and self._criu_was_lost):
            return True
        return self._stop_by is not None

    def _doubted(self, code: int) -> Checkpoint | None:
        """The checkpoint that the command was resumed from, if the command may have ended because
        of a signal that it received before that checkpoint.

        An exit code after the resumption from an earlier checkpoint is the command's own.
        """
        made = self._resumed_from
        if code == 0 or made is None or made.stopped_by is None or self._stop_by is not None:
            return None
        if code < 0:
            return made if signal_name(-code) == made.stopped_by else None
        return made if self._status.doubted is None else None

    def _change(self, **more: Any) -> None:
        self._status = replace(self._status, **more)

    def _report(self, event: str, message: str, **more: object) -> None:
        """Record an event, and write the status; if that fails, it is tried again later."""
        self._change(message=message)
        try:
            self._directory.event(event, message=message, **more)
        except OSError as error:
            print_message(f"{event}: {message} (the event cannot be written: {error})")
        self._kept = False
        self._keep()

    def _keep(self) -> None:
        """Write the status if it has changed. The command continues if this fails."""
        if not self._kept:
            with contextlib.suppress(OSError):
                self._directory.keep(self._status)
                self._kept = True

    def _keep_at_last(self) -> int:
        """Write the last status, within the limit of a last checkpoint; returns the exit code."""
        until = time.monotonic() + float(self._spec["grace"])
        while not self._kept and time.monotonic() < until:
            time.sleep(KEPT_EVERY)
            self._keep()
        if not self._kept:
            print_message(f"{self._status.message}; the status cannot be written for the next run")
        return 0 if self._kept else FAILED


def _was_killed(pid: int) -> bool:
    """Whether a signal has ended a child; it is not reaped. A last checkpoint ends the command."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return result is not None and result.si_code != os.CLD_EXITED


def _text(made: Checkpoint, took: float) -> str:
    kind = "incremental checkpoint" if made.parents else "checkpoint"
    return (
        f"{kind} {made.number}: {made.bytes / 2**20:.1f} MiB in {took:.2f} s, of which the "
        f"command was frozen for {made.frozen:.2f} s"
    )
