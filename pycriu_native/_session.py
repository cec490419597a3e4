"""One libcriu call: check, build, run, translate, release.

The call runs on a thread of its own with every signal blocked, from the worker's start to
its reaping, so nothing that happens to the caller's thread can leave it half done. The
caller's thread waits, runs the hook, and may be interrupted: what a signal's handler raises
becomes a request to undo the call, and is raised once CRIU has done that.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from inspect import isawaitable, iscoroutine
from typing import cast

from . import _chronicle, _stats
from ._direct import DirectCall
from ._exchange import Exchange, Hook, Notification
from ._failure import explain_failure
from ._kinds import Directory
from ._libcriu import LIBCRIU_VERBS, LibcriuCall
from ._line import Line, above_stdio
from ._log import LogMark
from ._message import Handle
from ._options import BY_WIRE
from ._reach import Via
from ._tree import ancestors, end_processes, wait_until_gone
from .enums import Verb
from .errors import CriuError, ImagesError, ProtocolError, WorkerDiedError
from .opts import VERB_MASK, CriuOpts
from .results import DumpStatistics, RestoreStatistics
from .values import WireValue, descriptor_number

UNTIL_REAPED = 5.0
"""Seconds that ``dump`` waits for the dumped processes to be reaped by their parents."""

UNTIL_DEAD = 5.0
"""Seconds that the processes of a failed restore get to die: CRIU kills them, and answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a verb asks for."""

    verb: Verb
    opts: CriuOpts
    pid: int | None = None
    via: Via
    on_notify: Hook | None = None
    deadline: float | None = None
    """Seconds for the whole call."""
    sibling: bool = False
    """Restore the root process as a child of ours."""
    keep_line: bool = False
    """Leave the line open for the next request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of it."""

    result: int
    """What libcriu's verb returned."""
    answer: dict[str, WireValue]
    """CRIU's final answer."""
    duration: float
    """Seconds, until CRIU had ended."""
    images: str
    """Path of the images directory, or an empty string."""
    log: str | None
    """Path of the log that this call has written."""
    statistics: DumpStatistics | RestoreStatistics | None
    """CRIU's own numbers."""
    chatter: str
    """What CRIU wrote to its standard output and error."""
    line: Line
    """The line to CRIU: still open with ``keep_line``, else closed."""
    tree: list[int]
    """The processes that were dumped."""
    interrupted_by: BaseException | None
    """What asked for the call to be undone when it was too late for that."""
    gone: bool = False
    """Whether the processes that were dumped have left their pids."""


HEARD = (Verb.DUMP, Verb.PRE_DUMP, Verb.RESTORE)
"""Verbs whose notifications are asked for: they are how a call is undone. (A page server sends
one, after its answer or before, to a socket on which nobody may listen any more.)"""

CREATING = (Verb.DUMP, Verb.PRE_DUMP, Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD, Verb.CPUINFO_DUMP)
"""Verbs that write images, and so make a missing directory for them."""


class Directories:
    """The images and work directory of a call, open while it runs."""

    def __init__(self, opts: CriuOpts, verb: Verb, owned: ExitStack) -> None:
        self._owned = owned
        self._make = "images_directory" if verb in CREATING else None
        self.opened = {
            row.name: self._open(value, row.name)
            for row, value in opts.items()
            if isinstance(row.kind, Directory)
        }
        """Their descriptors, by field."""
        self.images = self.opened.get("images_directory")
        self.work = self.opened.get("work_directory")
        self.log = self.images if self.work is None else self.work
        """Where CRIU puts its log and statistics; None with ``images_dir`` alone."""

    def _open(self, directory: object, field: str) -> int:
        if not isinstance(directory, str):
            return descriptor_number(directory)
        try:
            if field == self._make and not os.path.lexists(directory):
                os.mkdir(directory, 0o700)
            fd = above_stdio(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise ImagesError(
                f"{field}={directory!r} cannot be used: {error.strerror}", errno=error.errno or 0
            ) from None
        self._owned.callback(os.close, fd)
        return fd


class Call:
    """A call on its own thread, and the meeting point with the thread that waits for it."""

    def __init__(self, request: Request, wake: Callable[[], None] | None = None) -> None:
        """``wake`` is called, on the call's thread, when there is a question or the end."""
        self._request = request
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._exchange: Exchange | None = None
        self._cancelled: BaseException | None = None
        self.question: Question | None = None
        """A notification that waits for the hook."""
        self._turn = threading.Event()
        self._wake = wake or self._turn.set
        self._thread = threading.Thread(target=self._body, name=f"criu {request.verb}")

    # ---- the caller's thread ----

    def wait(self) -> Outcome:
        """Start, answer questions, and return or raise what came of it."""
        while not self.is_over() or self._thread.is_alive():
            try:
                self.start()
                if self.is_over():
                    self._thread.join()
                    continue
                self._turn.wait()
                self._turn.clear()
                question = self.question
                if question is not None:
                    question.put()
            except BaseException as interruption:
                if self._thread.ident is None:
                    raise  # nothing has begun
                self.cancel(interruption)
        return self.conclude()

    def start(self) -> None:
        """Begin; a second time does nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def is_over(self) -> bool:
        """Whether there is an outcome, or an error."""
        return self._outcome is not None or self._error is not None

    def conclude(self) -> Outcome:
        """Return or raise what came of a call that is over."""
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
        self._cancelled = reason
        if self._exchange is not None:
            self._exchange.cancel(reason)  # too late once it is closed; conclude() sees to that

    # ---- the call's thread ----

    def _body(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        try:
            self._outcome = self._run()
        except BaseException as error:
            self._error = error
        finally:
            self._wake()

    def _ask(self, notification: Notification) -> None:
        """Have the caller's thread run the hook, and raise what it raised."""
        hook = self._request.on_notify
        assert hook is not None
        question = self.question = Question(hook, notification)
        self._wake()
        question.answered.wait()
        self.question = None
        if question.refusal is not None:
            raise question.refusal

    def _run(self) -> Outcome:
        request = self._request
        started = time.monotonic()
        deadline = None if request.deadline is None else started + request.deadline
        with ExitStack() as owned:
            directories = Directories(request.opts, request.verb, owned)
            handle = owned.enter_context(Handle())
            keep = fill(handle, request, directories, owned)
            mark = (
                None
                if directories.log is None
                else LogMark.take(directories.log, log_name(request))
            )
            line = request.via.connect(keep, outside=is_inside(request))
            owner = owned.enter_context(ExitStack())
            owner.callback(line.reap)
            exchange = Exchange(line, request.verb, self._hook(), deadline, request.pid)
            owned.callback(exchange.close)
            self._listen_to(exchange)

            result, answer, lost = _converse(request, handle, exchange)
            if result >= 0 and request.keep_line:
                owner.pop_all()
            elif result >= 0 and request.opts.exec_cmd is not None:
                line.let_go()
            else:
                line.reap()
            outcome = Outcome(
                result=result,
                answer=answer,
                duration=time.monotonic() - started,
                images=_path(directories.images) or str(request.opts.images_dir or ""),
                log=os.path.join(_path(mark.directory), mark.name)
                if mark and mark.written()
                else None,
                statistics=_statistics(request.verb, directories.log) if result >= 0 else None,
                chatter=line.last_words,
                line=line,
                tree=exchange.tree,
                interrupted_by=exchange.stopped_by,
            )
            if mark is not None and _chronicle.wanted():
                _chronicle.pass_on(mark.text())
            failure = None
            if result < 0:
                failure = self._undone(outcome, mark, exchange, lost)
            _chronicle.tell(
                request.verb,
                request.pid,
                outcome.images,
                outcome.duration,
                None if failure is None else str(failure) or type(failure).__name__,
            )
            if failure is not None:
                raise failure
            return replace(outcome, gone=self._wait_until_gone(outcome.tree))

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
            end_processes(exchange.tree, UNTIL_DEAD, kill=lost is not None)
            wait_until_gone(exchange.tree, UNTIL_DEAD)  # so that their pids are free again
        if exchange.stopped_by is None:
            return explain_failure(
                request.verb, request.pid, request.opts, outcome, mark, exchange.line, lost
            )
        if lost is not None:
            exchange.stopped_by.add_note(f"CRIU did not undo it in time and was ended: {lost}")
        return exchange.stopped_by

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


class Question:
    """A notification that waits for the hook on the caller's thread."""

    def __init__(self, hook: Hook, notification: Notification) -> None:
        self._hook = hook
        self._notification = notification
        self._asked = False
        self.answered = threading.Event()
        self.refusal: BaseException | None = None

    def put(self) -> None:
        """Run the hook, once."""
        if self._asked:
            return
        self._asked = True
        try:
            returned = self._hook(self._notification)
            if iscoroutine(returned):
                returned.close()
                raise TypeError("a hook that is a coroutine function needs pycriu_native.aio")
        except BaseException as refusal:
            self.refusal = refusal
        self.answered.set()

    async def put_and_await(self) -> None:
        """Run the hook, once, and await what it returns if that can be awaited."""
        if self._asked:
            return
        self._asked = True
        try:
            returned = self._hook(self._notification)
            if isawaitable(returned):
                await returned
        except BaseException as refusal:
            self.refusal = refusal
        self.answered.set()

    def refuse(self, reason: BaseException) -> bool:
        """Answer for the hook; False if it has answered already."""
        if self.answered.is_set():
            return False
        self._asked = True
        self.refusal = reason
        self.answered.set()
        return True


def log_name(request: Request) -> str:
    """The log's name in the work directory."""
    return request.opts.log_file or f"{request.verb}.log"


def fill(handle: Handle, request: Request, directories: Directories, owned: ExitStack) -> list[int]:
    """Put the options into libcriu's handle; which descriptors CRIU inherits for them."""
    keep: list[int] = []

    def inherited(value: WireValue) -> WireValue:
        """The value, with each descriptor in it under a number that CRIU can inherit."""
        if isinstance(value, list):
            return [inherited(item) for item in value]
        if not isinstance(value, dict) or "fd" not in value:
            return value
        fd = cast(int, value["fd"])
        if fd <= 2 and request.via.ours:  # 0 to 2 are its own stdio there
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            owned.callback(os.close, fd)
        keep.append(fd)
        return {**value, "fd": fd}

    for row, value in request.opts.items():
        if isinstance(row.kind, Directory):
            handle.set(row, directories.opened[row.name])
        elif row.wire is not None:
            handle.set(row, inherited(row.kind.wire(value)))
    if request.verb in VERB_MASK:
        if request.opts.log_file is None and not request.opts.log_to_stderr:
            handle.set(BY_WIRE["log_file"], log_name(request))
        if not is_inside(request) and request.verb in HEARD:
            handle.set_wire("notify_scripts", True)  # who is frozen cannot answer
        if request.sibling:
            handle.set_wire("rst_sibling", True)
        if request.pid is not None:
            handle.set(BY_WIRE["pid"], request.pid)
    return keep


def is_inside(request: Request) -> bool:
    """Whether we are in the tree that is to be dumped: CRIU must not be."""
    if request.verb is not Verb.DUMP:
        return False
    return request.pid is None or request.pid in (os.getpid(), *ancestors())


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
    with call:
        try:
            answer, data = exchange.run(call.request())
        except (WorkerDiedError, ProtocolError) as lost:
            return -1, {}, lost
        return call.finish(data), answer, None


def _statistics(verb: Verb, directory: int | None) -> DumpStatistics | RestoreStatistics | None:
    if directory is None:
        return None
    if verb in (Verb.DUMP, Verb.PRE_DUMP):
        return _stats.read_dump(directory)
    return _stats.read_restore(directory) if verb is Verb.RESTORE else None


def _path(directory: int | None) -> str:
    """Where an open directory is, for people to read."""
    return "" if directory is None else os.readlink(f"/proc/self/fd/{directory}")
