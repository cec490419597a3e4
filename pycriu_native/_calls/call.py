"""One libcriu call: check, build, run, translate, release.

The call runs on a thread of its own with every signal blocked, from the worker's start to
its reaping, so nothing that happens to the caller's thread can leave it half done. The
caller's thread waits, runs the hook, and may be interrupted: what a signal's handler raises
becomes a request to undo the call, and is raised once CRIU has done that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar

from .._failures.log_excerpt import LogMark
from .._integrity import dump_marker
from .._integrity import statistics as statistics_module
from .._integrity.due_timers import rearm
from .._integrity.dump_marker import DumpMarker
from .._native.ffi import native
from .._recovery.half_restored import end_processes, half_restored
from .._support.frozen_dataclass import replace
from .._support.light_typing import TYPE_CHECKING, Protocol, cast
from .._support.unpatched import Event, Thread
from .._system.process_identity import check_start
from .._system.process_tree import wait_until_gone
from .._system.regular_file import check_writable
from .._transport.connection import Connection
from .._transport.spawn import SpawnOptions
from .._wire.direct_request import DirectCall
from .._wire.libcriu_request import LIBCRIU_VERBS, LibcriuCall
from .._wire.messages import Handle
from ..enums import Verb
from ..errors import BY_ERRNO, CriuError, DeadlineError, ImagesError, ProtocolError, WorkerDiedError
from ..options.values import WireValue
from ..results import DumpStatistics, RestoreStatistics
from . import logs
from .exchange import Exchange, Hook, Notification
from .hook_invocation import HookInvocation
from .prepare import Directories, fill
from .request import Outcome, Request, log_name

if TYPE_CHECKING:
    from .._recovery.failed_restore import RestoreUndo
    from .._recovery.link_remaps import KeptLink
    from .._recovery.recovery import Recovery, RecoveryResult
    from .._rollback.put_back import RollBack

STDIN = 0

UNTIL_REAPED = 5.0
"""Seconds that ``dump`` waits for the dumped processes to be reaped by their parents."""

UNTIL_DEAD = 5.0
"""Seconds that the processes of a failed restore get to die: CRIU kills them, and answers."""


Connect = Callable[[Sequence[int], SpawnOptions], Connection]
"""``Via.connect``."""


class CallRunner(Protocol):
    """Who waits for calls in a way of its own: asyncio's task, and the threads of a batch."""

    def run_to_end(self, call: Call) -> Outcome:
        """The counterpart of ``Call.wait``."""

    def take_over(self, cancel: Callable[[BaseException], None], hook: Hook | None) -> Hook | None:
        """For what is made of many calls and waits for more than these: it waits for its calls
        itself, is cancelled by this, and runs the hook that is returned.
        """


KEEPER: ContextVar[CallRunner | None] = ContextVar("KEEPER", default=None)
"""Who waits for the calls made in this context."""


class Call:
    """A call on its own thread, and the meeting point with the thread that waits for it."""

    def __init__(self, request: Request) -> None:
        self.request = self._request = request
        """What was asked."""
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._exchange: Exchange | None = None
        self._cancelled: BaseException | None = None
        self._since = 0.0
        self._in_turn: AbstractContextManager[object] | None = None
        self._connect: Connect = request.via.connect
        self.question: HookInvocation | None = None
        """A notification that waits for the hook."""
        self._turn = Event()
        self.wake: Callable[[], None] = self._turn.set
        """Called, on the call's thread, when there is a question or the end."""
        self._thread = Thread(target=self._body, name=f"criu {request.verb}")

    # ---- the caller's thread ----

    def wait(self) -> Outcome:
        """Start, answer questions, and return or raise what came of it."""
        keeper = KEEPER.get()
        return self.wait_with_hooks() if keeper is None else keeper.run_to_end(self)

    def wait_with_hooks(self) -> Outcome:
        """:meth:`wait`, on this thread."""
        while True:
            try:
                # A signal's handler can run wherever the interpreter looks for signals, in the
                # condition of the loop and at its end as well.
                while not self.is_over() or self._thread.is_alive():
                    self.start()
                    if self.is_over():
                        self._thread.join()
                        continue
                    self._turn.wait()
                    self._turn.clear()
                    question = self.question
                    if question is not None:
                        question.run()
                break
            except BaseException as interruption:
                if self._thread.ident is None:
                    raise  # nothing has begun
                self.cancel(interruption)
        return self.conclude()

    def start(self) -> None:
        """Begin; a second time does nothing."""
        if self._thread.ident is None:
            try:
                self._thread.start()
            except RuntimeError as error:
                if "can't start" not in str(error):
                    raise  # an interpreter that allows none, and says so
                verb = str(self._request.verb)
                raise CriuError(f"{verb}: no thread could be started for it", verb=verb) from error

    @property
    def worker_pid(self) -> int:
        """The worker's pid while it works; 0 before, and where it is not ours."""
        return 0 if self._exchange is None else self._exchange.line.pid

    @property
    def is_undone(self) -> bool:
        """Whether it is being undone, or is to be."""
        exchange = self._exchange
        return self._cancelled is not None or (
            exchange is not None and exchange.stopped_by is not None
        )

    def is_over(self) -> bool:
        """Whether there is an outcome, or an error."""
        return self._outcome is not None or self._error is not None

    def run_here(
        self, turn: AbstractContextManager[object], connect: Connect | None = None
    ) -> Outcome:
        """Do it on this thread, which nobody interrupts; without a hook, which nobody would run.

        ``turn`` is held while CRIU works: all is made ready before, the worker too, and what is
        left to do afterwards is in nobody's way. Waiting for it does not count as time of the call.
        ``connect`` takes the place of the ``via``'s.
        """
        self._in_turn = turn
        self._connect = connect or self._connect
        before = native.pn_block_signals()
        try:
            self._body()
        finally:
            native.pn_set_signals(before)
        return self.conclude()

    def conclude(self) -> Outcome:
        """Return or raise what came of a call that is over."""
        if self._thread.ident is not None:
            self._thread.join()
        late = self._cancelled
        if self._outcome is None:
            assert self._error is not None
            if late is not None and late is not self._error:
                raise late from self._error  # it had failed by itself
            raise self._error
        if self._outcome.interrupted_by is None and late is not None:
            return replace(self._outcome, interrupted_by=late)
        return self._outcome

    def cancel(self, reason: BaseException) -> None:
        """Have CRIU undo the call; ``reason`` is raised when it has."""
        question = self.question
        if question is not None and question.refuse(reason):
            return
        if self._cancelled is None:
            self._cancelled = reason  # which is raised; further ones are noted on it
        if self._exchange is not None:
            self._exchange.cancel(reason)  # too late once it is closed; conclude() sees to that

    # ---- the call's thread ----

    def _body(self) -> None:
        native.pn_block_signals()  # Python's own function takes half a millisecond
        try:
            self._outcome = self._run()
        except BaseException as error:
            self._error = error
        finally:
            self.wake()

    def _ask(self, notification: Notification) -> object:
        """Have the caller's thread run the hook; return or raise what it did."""
        hook = self._request.on_notify
        assert hook is not None
        question = self.question = HookInvocation(hook, notification)
        self.wake()
        question.answered.wait()
        self.question = None
        if question.refusal is not None:
            raise question.refusal
        return question.returned

    def _run(self) -> Outcome:
        request = self._request
        started = time.monotonic()
        self._since = time.clock_gettime(time.CLOCK_BOOTTIME)
        deadline = None if request.deadline is None else started + request.deadline

        def check_wanted() -> None:
            if self._cancelled is not None:
                raise CriuError("interrupted", verb=str(request.verb), pid=request.pid)
            if deadline is not None and time.monotonic() > deadline:
                message = f"{request.verb}: the deadline of {request.deadline:g} s passed"
                raise DeadlineError(message, verb=str(request.verb), pid=request.pid)

        with ExitStack() as owned:
            directories = Directories(
                request.opts, request.verb, owned, allow_untrusted=request.via.allow_untrusted
            )
            _check_outputs(request, directories)
            unfinished = _watch_over(request, directories, owned)
            handle = owned.enter_context(Handle())
            keep = fill(handle, request, directories, owned)
            mark = (
                None
                if directories.log is None
                else LogMark.take(directories.log, log_name(request))
            )
            if request.opts.shell_job or request.opts.exec_cmd is not None:
                keep.append(STDIN)  # what is restored, or takes CRIU's place, reads from it
            line = self._connect(keep, request.spawn_options)
            owner = owned.enter_context(ExitStack())
            owner.callback(line.wait)
            rescue = _rescue_for(request)
            if rescue is not None:
                owned.callback(rescue.close)
            rolled_back = _roll_back(request, directories, owned, check_wanted)
            undo = _undo_for(request, directories, owned)
            turn = owned.enter_context(ExitStack())
            if self._in_turn is not None:
                ready = time.monotonic()
                turn.enter_context(self._in_turn)
                waited = time.monotonic() - ready
                started += waited
                deadline = None if deadline is None else deadline + waited

            kept: list[KeptLink] = []

            def when_written() -> None:
                is_dump = request.verb is Verb.DUMP and not request.opts.stream
                self._check_identity()  # the tree is frozen: nobody can take the pid any more
                if is_dump and directories.images is not None:
                    dump_marker.check_written(directories.images, request.pid)
                    rearm(directories.images)
                    if request.rollback is not None:
                        _save_files(request, directories.images, exchange.tree, check_wanted)
                    if request.opts.link_remap and request.opts.leave_running:
                        kept.extend(_keep_links(directories.images, request.pid))
                if unfinished is not None:
                    unfinished.finish()

            def break_off(tree: list[int]) -> None:
                from .interrupt import end_restored, fail_writes  # few calls are interrupted

                if line.pid and request.verb is Verb.RESTORE:
                    images, _ = _paths(directories, request, None)
                    tree += end_restored(line.pid, images, self._since, tree)
                elif line.pid and request.verb in (Verb.DUMP, Verb.PRE_DUMP):
                    fail_writes(line.pid, request.pid)
                if request.abort is not None:
                    request.abort()

            exchange = Exchange(
                line,
                request.verb,
                self._hook(),
                deadline,
                request.pid,
                rescue,
                when_written,
                break_off,
            )
            owned.callback(exchange.close)
            self._listen_to(exchange)

            self._check_identity()
            result, answer, lost = _converse(request, handle, exchange)
            turn.close()
            if result >= 0 and request.verb is Verb.PRE_DUMP:
                self._check_identity()  # CRIU sends no notification while the tree is frozen
            if result >= 0 and unfinished is not None:
                unfinished.finish()
            if result >= 0 and request.keep_line:
                owner.pop_all()
            elif result >= 0 and request.opts.exec_cmd is not None:
                line.detach()
            elif result >= 0 and request.verb is not Verb.RESTORE:
                line.close_async()
            else:
                if request.verb is Verb.PRE_DUMP:
                    line.kill()  # if its child was killed, what that had forked is still there
                line.wait()  # until CRIU has ended it is the parent of what it has restored
            images, log = _paths(directories, request, mark)
            outcome = Outcome(
                result=result,
                answer=answer,
                duration=time.monotonic() - started,
                images=images,
                log=log,
                statistics=_statistics(request, directories.log) if result >= 0 else None,
                stderr_text=line.final_stderr,
                line=line,
                tree=exchange.tree,
                interrupted_by=exchange.stopped_by,
            )
            if logs.wanted():
                logs.pass_on((mark.text() if mark else "") + outcome.stderr_text)
            failure = None
            if result < 0:
                failure = self._undone(outcome, mark, exchange, lost)
                for link in kept:
                    link.forget()
                # CRIU unlocks before it serves pages: of a lazy dump that is undone after that,
                # it leaves the lock and the connections as they are (seen with 4.2.1).
                # A pre-dump is made by a child of the worker, which tells only that it has failed.
                unsure = request.opts.lazy_pages or request.verb is Verb.PRE_DUMP
                if rescue is not None and (lost is not None or unsure):
                    _tell(failure, rescue.after())
                left = () if undo is None else undo.undo(killed=lost is not None)
                if rolled_back is not None:
                    left += rolled_back.give_back()
                _name_left(failure, left)
                if unfinished is not None and lost is None:
                    unfinished.undo()
            else:
                for ended in (undo, rolled_back):
                    if ended is not None:
                        ended.succeeded()
            logs.tell(
                request.verb,
                request.pid,
                outcome.images,
                outcome.duration,
                None if failure is None else str(failure) or type(failure).__name__,
            )
            if failure is not None:
                raise failure
            if request.verb in (Verb.DUMP, Verb.RESTORE):
                logs.advise()
            return replace(outcome, pid_free=self._wait_until_gone(outcome.tree))

    def _check_identity(self) -> None:
        """Raise ``ProcessMismatchError`` if the pid is another process's since the call began."""
        request = self._request
        if request.pid is not None and request.start_time is not None:
            check_start(request.pid, request.start_time, str(request.verb))

    def _undone(
        self,
        outcome: Outcome,
        mark: LogMark | None,
        exchange: Exchange,
        lost: CriuError | None,
    ) -> BaseException:
        """What to raise for a call that CRIU did not do, once nothing is left of it."""
        request = self._request
        if request.verb is Verb.RESTORE:
            if lost is not None:
                exchange.tree += half_restored(outcome.images, self._since)
            end_processes(exchange.tree, UNTIL_DEAD, kill=lost is not None)
        if outcome.line.pid:
            from .._recovery.created_children import reap_made  # a call that succeeds does without

            reap_made(
                outcome.images if request.verb is Verb.RESTORE else "",
                outcome.line.pid,
                outcome.line.program,
                self._since,
                UNTIL_DEAD,
                kill=lost is not None,
            )
        if request.verb is Verb.RESTORE:
            wait_until_gone(exchange.tree, UNTIL_DEAD)  # so that their pids are free again
        if exchange.stopped_by is None:
            try:
                from .._failures.explain import explain_failure  # a call that succeeds does without

                return explain_failure(
                    request.verb, request.pid, request.opts, outcome, mark, exchange.line, lost
                )
            except (ImportError, OSError):
                # The caller has changed its root or its user since: see preload().
                return _unexplained(request, outcome, mark, lost)
        stop = exchange.stopped_by
        how = "undone" if lost is None else "given up"
        of = "" if request.pid is None else f" of pid {request.pid}"
        message = f"{request.verb}{of} {how} after {outcome.duration:.1f} s"
        if exchange.out_of_time:
            assert isinstance(stop, DeadlineError)
            stop.message = f"{message}: the deadline of {request.deadline:g} s passed"
            stop.args = (stop.message,)
        elif not isinstance(stop, Exception):
            stop.add_note(message)  # an interruption: its own words tell nothing of the call
        if lost is not None:
            stop.add_note(f"CRIU did not undo it in time and was ended: {lost}")
        return stop

    def _wait_until_gone(self, tree: list[int]) -> bool:
        """Whether the dumped are gone: asked here, where no signal cuts a call that is over."""
        request = self._request
        if request.verb is not Verb.DUMP or request.pid is None:
            return False
        if request.opts.leave_running or request.opts.leave_stopped:
            return False
        return wait_until_gone(tree, UNTIL_REAPED, lambda: self._cancelled is not None)

    def _hook(self) -> Hook | None:
        return None if self._request.on_notify is None else self._ask

    def _listen_to(self, exchange: Exchange) -> None:
        """From now on a cancel goes to the exchange; one that came before is not lost."""
        self._exchange = exchange
        if self._cancelled is not None:
            exchange.cancel(self._cancelled)


def _watch_over(request: Request, directories: Directories, owned: ExitStack) -> DumpMarker | None:
    """See to it that no half of an image set is taken for a whole one.

    A dump of a tree that we are in has no mark: nobody is left to take it away.
    """
    if directories.images is None or request.opts.stream:
        return None
    if request.verb is Verb.RESTORE:
        dump_marker.check(directories.images, request.opts)
    if request.verb not in (Verb.DUMP, Verb.PRE_DUMP) or request.inside:
        return None
    try:
        unfinished = DumpMarker(directories.images)
    except OSError as error:
        if isinstance(error, CriuError):
            raise
        return None  # nothing can be written there: CRIU will say so, and why
    owned.callback(unfinished.close)
    return unfinished


def _check_outputs(request: Request, directories: Directories) -> None:
    """Refuse what CRIU would open for writing and block on: a FIFO in the place of a file."""
    if directories.log is None:
        return
    for name in (log_name(request), "stats-dump", "stats-restore"):
        try:
            check_writable(directories.log, name)
        except OSError as error:
            path = f"{dump_marker.where(directories.log)}/{name}"
            raise ImagesError(
                f"{path} is {error.strerror}, and CRIU writes to it",
                verb=str(request.verb),
                errno=error.errno,
                cause=f"{path} is {error.strerror}",
                cure="remove it",
                options=("work_directory", "log_file"),
            ) from None


def _rescue_for(request: Request) -> Recovery | None:
    if request.pid is None or request.verb not in (Verb.DUMP, Verb.PRE_DUMP):
        return None
    try:
        from .._recovery.recovery import Recovery  # only dumps need it
    except (ImportError, OSError):
        return None  # the caller has changed its root or its user since: see preload()
    return Recovery(request.pid, request.opts)


def _undo_for(request: Request, directories: Directories, owned: ExitStack) -> RestoreUndo | None:
    """What undoes a restore from files; the names in a stream are not known before."""
    images, work = directories.images, directories.log
    if request.verb is not Verb.RESTORE or images is None or work is None or request.opts.stream:
        return None
    try:
        from .._recovery.failed_restore import RestoreUndo  # only restores need it

        undo = RestoreUndo(images, work, request.opts)
    except (ImportError, OSError):
        return None  # the caller has changed its root or its user since: see preload()
    owned.callback(undo.close)
    return undo


def _save_files(
    request: Request, images: int, tree: Sequence[int], check: Callable[[], object]
) -> None:
    """Save what the frozen tree writes."""
    from .._rollback.saved_files import save  # few dumps need it

    assert request.rollback is not None
    save(images, tree, request.rollback.patterns, check)


def _roll_back(
    request: Request, directories: Directories, owned: ExitStack, check: Callable[[], object]
) -> RollBack | None:
    """Put the files back that the dump of these images has saved."""
    if request.rollback is None or request.verb is not Verb.RESTORE or directories.images is None:
        return None
    from .._rollback.put_back import RollBack  # few restores need it

    rolled_back = RollBack(directories.images)
    owned.callback(rolled_back.close)
    rolled_back.put_back(check)
    return rolled_back


def _keep_links(images: int, pid: int | None) -> list[KeptLink]:
    """CRIU removes its links from a process that runs on; its images need them."""
    from .._recovery.link_remaps import keep_links  # few dumps need it

    return keep_links(images, f"/proc/{pid}/root")


def _name_left(failure: BaseException, left: tuple[str, ...]) -> None:
    """Add to an error what is left of a restore."""
    if left and isinstance(failure, CriuError):
        failure.left_behind = left
    for thing in left:
        failure.add_note(f"left behind: {thing}")


def _tell(failure: BaseException, rescued: RecoveryResult) -> None:
    """Add to an error what a CRIU that is gone has cost the process."""
    if isinstance(failure, CriuError):
        failure.lost_connections = rescued.lost_connections
        failure.left_behind = rescued.left_behind
    if text := str(rescued):
        failure.add_note(text)


def _converse(
    request: Request, handle: Handle, exchange: Exchange
) -> tuple[int, dict[str, WireValue], CriuError | None]:
    """One verb against CRIU: its result, CRIU's answer, and how CRIU was lost, if it was."""
    verb = request.verb
    call: LibcriuCall | DirectCall
    if verb in LIBCRIU_VERBS:
        call = LibcriuCall(verb, handle)
    else:
        call = DirectCall(verb, handle, keep_open=request.keep_line)
    try:
        answer, data = exchange.run(call.request())
    except (WorkerDiedError, ProtocolError) as lost:
        return -1, {}, lost
    result = call.finish(data)
    if result < 0 and answer["success"]:
        result = _result_of(answer)  # libcriu ran out of memory when all was done
    return result, answer, None


def _result_of(answer: dict[str, WireValue]) -> int:
    """What libcriu's verb returns for an answer that says yes."""
    for part, value in (("restore", "pid"), ("dump", "restored")):
        body = answer.get(part)
        if isinstance(body, dict):
            return int(cast(int, body.get(value, 0)))
    return 0


def _unexplained(
    request: Request, outcome: Outcome, mark: LogMark | None, lost: CriuError | None
) -> CriuError:
    """The error for a failure whose explanation cannot be loaded: CRIU's own words."""
    response = (mark.text() if mark is not None else "") + outcome.stderr_text
    lines = [line.strip() for line in response.splitlines() if "Error" in line]
    errno = cast(int, outcome.answer.get("cr_errno", 0))
    why = str(lost) if lost is not None else lines[0] if lines else os.strerror(errno)
    kind = type(lost) if lost is not None else BY_ERRNO.get(errno, CriuError)
    return kind(
        f"{request.verb} failed: {why} (what is known of it cannot be loaded any more: see "
        "pycriu_native.preload)",
        verb=str(request.verb),
        pid=request.pid,
        code=outcome.result,
        errno=errno,
        log=outcome.log,
        lines=lines,
    )


def _statistics(
    request: Request, directory: int | None
) -> DumpStatistics | RestoreStatistics | None:
    verb = request.verb
    if directory is None:
        return None
    if verb is Verb.DUMP and request.opts.lazy_pages:
        return None  # CRIU begins to count anew when it serves pages, and then writes nonsense
    if verb in (Verb.DUMP, Verb.PRE_DUMP):
        return statistics_module.read_dump(directory)
    return statistics_module.read_restore(directory) if verb is Verb.RESTORE else None


def _paths(
    directories: Directories, request: Request, mark: LogMark | None
) -> tuple[str, str | None]:
    """Where the images directory is, for people to read, and the log that the call has written."""
    images = str(request.opts.images_dir or "")
    if directories.images is not None:
        images = dump_marker.where(directories.images)
    if mark is None or not mark.written():
        return images, None
    same = mark.directory == directories.images
    return images, os.path.join(images if same else dump_marker.where(mark.directory), mark.name)
