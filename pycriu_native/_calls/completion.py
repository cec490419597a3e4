"""The part of a call after CRIU's response. Loaded while CRIU works on the request."""

from __future__ import annotations

import os

from .._integrity import statistics
from .._recovery.created_children import reap_made
from .._recovery.half_restored import end_processes, half_restored
from .._support.light_typing import TYPE_CHECKING, cast
from .._support.no_fork import no_fork
from .._support.unpatched import poll
from .._system.regular_file import LogMark
from ..enums import Verb
from ..errors import BY_ERRNO, CriuError, DeadlineError
from ..results import DumpStatistics, RestoreStatistics
from . import logs  # noqa: F401
from .exchange import Exchange
from .request import Outcome, Request

if TYPE_CHECKING:
    from .._transport.connection import Connection

poll()  # ``select`` is loaded with this module: a hook may change the root later

__all__ = ["end", "end_processes", "failure_of", "half_restored", "reap_made", "statistics_of"]


def end(connection: Connection, request: Request, *, succeeded: bool) -> None:
    """End the connection; CRIU then exits, or has become another program."""
    if succeeded and request.opts.exec_cmd is not None:
        connection.detach()
    elif succeeded and (request.verb is not Verb.RESTORE or request.sibling):
        connection.close_async()
    else:
        if request.verb is Verb.PRE_DUMP:
            connection.kill()  # a killed child of it may have left processes in its group
        connection.wait()  # until CRIU has ended, it is the parent of what it has restored


def statistics_of(
    request: Request, directory: int | None
) -> DumpStatistics | RestoreStatistics | None:
    """CRIU's statistics of a call that succeeded, where it writes any."""
    verb = request.verb
    if directory is None:
        return None
    if verb is Verb.DUMP and request.opts.lazy_pages:
        return None  # CRIU resets the counters when it serves pages, and writes wrong numbers
    if verb in (Verb.DUMP, Verb.PRE_DUMP):
        return statistics.read_dump(directory)
    return statistics.read_restore(directory) if verb is Verb.RESTORE else None


def failure_of(
    request: Request,
    outcome: Outcome,
    mark: LogMark | None,
    exchange: Exchange,
    lost: CriuError | None,
) -> BaseException:
    """The explained error, or what stopped the call. ``lost``: CRIU did not respond."""
    stop = exchange.stopped_by
    if stop is None:
        try:
            with no_fork:  # imported here: only failed calls need it
                from .._failures.explain import explain_failure

            return explain_failure(request.verb, request.pid, request.opts, outcome, mark, lost)
        except (ImportError, OSError):
            # The caller has changed its root or its user since: see preload().
            return _unexplained(request, outcome, mark, lost)
    how = "undone" if lost is None else "aborted"
    of = "" if request.pid is None else f" of pid {request.pid}"
    message = f"{request.verb}{of} {how} after {outcome.duration:.1f} s"
    if exchange.deadline_passed:
        assert isinstance(stop, DeadlineError)
        stop.message = f"{message}: {request.deadline_passed}"
        stop.args = (stop.message,)
    elif not isinstance(stop, Exception):
        stop.add_note(message)  # the text of an interruption does not name the call
    if lost is not None:
        stop.add_note(f"CRIU did not undo it in time and was ended: {lost}")
    return stop


def _unexplained(
    request: Request, outcome: Outcome, mark: LogMark | None, lost: CriuError | None
) -> CriuError:
    """The error for a failure whose explanation cannot be loaded: CRIU's error lines only."""
    response = (mark.text() if mark is not None else "") + outcome.connection.final_stderr
    lines = [line.strip() for line in response.splitlines() if "Error" in line]
    errno = cast(int, outcome.answer.get("cr_errno", 0))
    why = str(lost) if lost is not None else lines[0] if lines else os.strerror(errno)
    kind = type(lost) if lost is not None else BY_ERRNO.get(errno, CriuError)
    return kind(
        f"{request.verb} failed: {why} (its explanation cannot be loaded any more: see "
        "pycriu_native.preload)",
        verb=str(request.verb),
        pid=request.pid,
        code=outcome.result,
        errno=errno,
        log=outcome.log,
        lines=lines,
    )
