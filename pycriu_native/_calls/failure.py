"""The error of a call that CRIU did not do."""

from __future__ import annotations

import os

from .._support.light_typing import cast
from .._support.no_fork import no_fork
from .._system.regular_file import LogMark
from ..errors import BY_ERRNO, CriuError, DeadlineError
from .exchange import Exchange
from .request import Outcome, Request


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

            return explain_failure(
                request.verb, request.pid, request.opts, outcome, mark, exchange.connection, lost
            )
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
    response = (mark.text() if mark is not None else "") + outcome.stderr_text
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
