"""The steps of one call, on its own thread: prepare, start the worker, converse, end.

The steps after the worker's start are in ``conversation.py`` and ``completion.py``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

from .._support.frozen_dataclass import replace
from .._support.light_typing import TYPE_CHECKING
from .._support.no_fork import no_fork
from .._system.descriptors import where
from .._system.process_tree import wait_until_gone, wait_until_stopped
from .._system.regular_file import LogMark, check_writable
from .._wire.messages import Handle
from ..enums import Verb
from ..errors import CriuError, DeadlineError, ImagesError, ResumedError
from .prepare import Directories, fill
from .request import Outcome, Request, log_name, output_names
from .safeguards import Safeguards

if TYPE_CHECKING:
    from .._recovery.recovery import Recovery
    from .._transport.connection import Connection
    from .._transport.spawn import SpawnOptions
    from .exchange import Exchange
    from .notification import Hook

    Connect = Callable[[Sequence[int], SpawnOptions], Connection]
    """``Via.connect``."""

STDIN = 0

UNTIL_STOPPED = 5.0
"""Seconds to wait until the processes of a restore with ``leave_stopped`` are stopped: CRIU sends
the signal and does not wait."""

UNTIL_DEAD = 5.0
"""Seconds that the processes of a failed restore may take to end after CRIU has killed them."""


class Run:
    """One call, from its request to its outcome."""

    def __init__(
        self,
        request: Request,
        connect: Connect,
        *,
        hook: Hook | None,
        turn: AbstractContextManager[object] | None,
        cancelled: Callable[[], BaseException | None],
        on_exchange: Callable[[Exchange], None],
    ) -> None:
        """``turn`` is held while CRIU works; ``cancelled`` returns why the call is to be undone.
        From ``on_exchange`` on, a cancel goes to the exchange.
        """
        self._request = request
        self._connect = connect
        self._hook = hook
        self._turn = turn
        self._cancelled = cancelled
        self._on_exchange = on_exchange
        self._started = time.monotonic()
        self._since = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._deadline = None if request.deadline is None else self._started + request.deadline

    def run(self) -> Outcome:
        """Take all steps. Errors are raised when everything is undone."""
        request = self._request
        with ExitStack() as owned:
            directories = Directories(request, owned)
            _check_outputs(request, directories)
            safeguards = Safeguards(request, directories, owned, self._check_wanted)
            safeguards.mark()
            handle = owned.enter_context(Handle())
            keep = fill(handle, request, directories, owned)
            log = directories.log
            mark = None if log is None else LogMark(log, log_name(request.opts, request.verb))
            if request.opts.shell_job or request.opts.exec_cmd is not None:
                keep.append(STDIN)  # restored processes, or a program of exec_cmd, read from it

            connection = self._connect(keep, request.spawn_options)
            ending = owned.enter_context(ExitStack())
            ending.callback(connection.wait)
            with no_fork:
                from . import conversation  # loaded while CRIU starts

            safeguards.start()

            with self._its_turn():
                exchange = self._exchange(connection, directories, safeguards)
                owned.callback(exchange.close)
                self._on_exchange(exchange)
                safeguards.begin()
                result, answer, lost = conversation.converse(request, handle, exchange)
            with no_fork:
                from . import completion, logs  # loaded while CRIU worked

            succeeded = result >= 0
            if succeeded:
                if connection.on_success is not None and exchange.stopped_by is None:
                    connection.on_success()
                if request.verb is Verb.PRE_DUMP:
                    safeguards.pre_dumped()
                safeguards.finish()
            if succeeded and request.keep_connection:
                ending.pop_all()
            else:
                completion.end(connection, request, succeeded=succeeded)

            images, log_path = _paths(directories, request, mark)
            outcome = Outcome(
                result=result,
                answer=answer,
                duration=time.monotonic() - self._started,
                images=images,
                log=log_path,
                statistics=completion.statistics_of(request, log) if succeeded else None,
                connection=connection,
                tree=exchange.tree,
                interrupted_by=exchange.stopped_by,
            )
            logs.pass_on(mark, connection.final_stderr)
            if succeeded:
                safeguards.succeeded()
                self._log(outcome)
                if request.verb in (Verb.DUMP, Verb.RESTORE):
                    logs.advise()
                if request.verb is Verb.RESTORE and request.opts.leave_stopped:
                    wait_until_stopped(outcome.tree, UNTIL_STOPPED)
                since = time.monotonic()
                free = self._wait_until_gone(outcome.tree)
                return replace(outcome, pid_free=free, reap_wait=time.monotonic() - since)
            killed, errors = lost is not None, list[Exception]()
            ended: dict[int, int] = {}
            with _collected(errors):
                ended = self._end_processes(outcome, killed=killed)
            failure = completion.failure_of(request, outcome, mark, exchange, lost)
            if isinstance(failure, ResumedError) and outcome.tree:
                failure.pid = outcome.tree[0]
                failure.status = ended.get(failure.pid)
            with _collected(errors):
                safeguards.failed(failure, killed=killed)
            for error in errors:
                failure.add_note(f"not everything was undone: {error!r}")
            self._log(outcome, failure)
            raise failure

    # ---- before ----

    def _check_wanted(self) -> None:
        """Raise if the call is cancelled or late before CRIU has the request."""
        request = self._request
        if self._cancelled() is not None:
            raise CriuError("interrupted")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise DeadlineError(f"{request.verb}: {request.deadline_passed}")

    @contextmanager
    def _its_turn(self) -> Iterator[None]:
        """Hold the turn, if the call has one. Waiting for it does not count as time of the call."""
        if self._turn is None:
            yield
            return
        ready = time.monotonic()
        with self._turn:
            waited = time.monotonic() - ready
            self._started += waited
            if self._deadline is not None:
                self._deadline += waited
            yield

    # ---- while CRIU works ----

    def _exchange(
        self, connection: Connection, directories: Directories, safeguards: Safeguards
    ) -> Exchange:
        from .exchange import Exchange  # loaded in ``run``

        request = self._request
        return Exchange(
            connection,
            request.verb,
            self._hook,
            self._deadline,
            request.pid,
            safeguards,
            partial(_requested, safeguards),
            partial(self._break_off, connection, directories),
        )

    def _break_off(
        self, connection: Connection, directories: Directories, tree: list[int], only_scripts: bool
    ) -> None:
        """Make CRIU's work fail before its next notification, or end only its action scripts."""
        with no_fork:
            from .interrupt import end_restored, end_scripts, fail_writes  # few are interrupted

        request = self._request
        if connection.pid:
            end_scripts(connection.pid, tree if request.verb is Verb.RESTORE else [])
        if only_scripts:
            return
        if connection.pid and request.verb is Verb.RESTORE:
            images, _ = _paths(directories, request, None)
            images = request.with_pids_here(images)
            tree += end_restored(connection.pid, images, self._since, tree)
        elif connection.pid and request.verb in (Verb.DUMP, Verb.PRE_DUMP):
            fail_writes(connection.pid, request.pid)
        if request.abort is not None:
            request.abort()

    # ---- after ----

    def _end_processes(self, outcome: Outcome, *, killed: bool) -> dict[int, int]:
        """End and reap the processes of a failed call, so that their pids are free again.

        Returns the exit status of each child of the caller, by its pid.
        """
        from .completion import end_processes, half_restored, reap_made  # loaded in ``run``

        is_restore = self._request.verb is Verb.RESTORE
        if is_restore:
            if killed:
                images = self._request.with_pids_here(outcome.images)
                outcome.tree.extend(half_restored(images, self._since))
            end_processes(outcome.tree, UNTIL_DEAD, kill=killed)
        ended: dict[int, int] = {}
        if outcome.connection.pid:
            ended = reap_made(
                outcome.images if is_restore else "",
                outcome.connection.pid,
                outcome.connection.program,
                self._since,
                UNTIL_DEAD,
                kill=killed,
                namespace=self._request.pid_namespace if is_restore else "",
            )
        if is_restore:
            wait_until_gone(outcome.tree, UNTIL_DEAD)
        return ended

    def _wait_until_gone(self, tree: list[int]) -> bool:
        """Whether the dumped processes have left their pids. No signal interrupts this thread."""
        request = self._request
        if request.verb is not Verb.DUMP or request.pid is None:
            return False
        if request.opts.leave_running or request.opts.leave_stopped:
            return False
        return wait_until_gone(tree, request.reap_timeout, lambda: self._cancelled() is not None)

    def _log(self, outcome: Outcome, failure: BaseException | None = None) -> None:
        from . import logs  # loaded in ``run``

        what = None if failure is None else str(failure) or type(failure).__name__
        request = self._request
        logs.log_call(request.verb, request.pid, outcome.images, outcome.duration, what)


@contextmanager
def _collected(errors: list[Exception]) -> Iterator[None]:
    """Keep an error of the undo of a failed call: it must not hide the failure."""
    try:
        yield
    except Exception as error:
        errors.append(error)


def _requested(safeguards: Safeguards) -> Recovery | None:
    """Import the modules for the time after CRIU's response, while CRIU works."""
    recovery = safeguards.requested() if safeguards.can_recover else None
    with no_fork:
        from . import completion  # noqa: F401

    return recovery


def _check_outputs(request: Request, directories: Directories) -> None:
    """Refuse a FIFO instead of an output file: CRIU would block when it opens it."""
    if directories.log is None:
        return
    for name in output_names(request.opts, request.verb):
        try:
            check_writable(directories.log, name)
        except OSError as error:
            path = f"{where(directories.log)}/{name}"
            raise ImagesError(
                f"{path} is {error.strerror}, and CRIU writes to it",
                errno=error.errno,
                cause=f"{path} is {error.strerror}",
                cure="remove it",
                options=("work_directory", "log_file"),
            ) from None


def _paths(
    directories: Directories, request: Request, mark: LogMark | None
) -> tuple[str, str | None]:
    """The path of the images directory, for messages, and of the log that the call has written."""
    images = str(request.opts.images_dir or "")
    if directories.images is not None:
        images = where(directories.images)
    if mark is None or not mark.written():
        return images, None
    same = mark.directory == directories.images
    return images, os.path.join(images if same else where(mark.directory), mark.name)
