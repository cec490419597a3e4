"""From a failed call to the one exception that says what failed, on what, why, what to do."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, cast

from ._line import Line
from ._log import LogMark, diagnose, error_lines
from ._tree import stat_of
from .enums import Verb
from .errors import CriuError, Diagnosis, PidInUseError, WorkerDiedError
from .opts import CriuOpts
from .values import PageServer

if TYPE_CHECKING:
    from ._session import Outcome

EBADRQC = 56
"""What CRIU answers when it refuses a request's options; mostly it says nothing else."""


_SUMS_UP = re.compile(r"(Dumping|Restoring) FAILED|killed by signal|exited, status=")
"""Lines that say that something failed, and not what."""


def explain_failure(
    verb: Verb,
    pid: int | None,
    opts: CriuOpts,
    outcome: Outcome,
    mark: LogMark | None,
    line: Line,
    lost: CriuError | None = None,
) -> CriuError:
    """The error for an answer that says no, or for the lack of one (``lost``)."""
    text = mark.text() if mark is not None else ""
    lines = error_lines(text) or error_lines(outcome.chatter)
    message = cast(str, outcome.answer.get("cr_errmsg", "")).strip()
    if message and not any(message in known for known in lines):
        lines += error_lines(message)
    errno = cast(int, outcome.answer.get("cr_errno", 0))
    found = diagnose(lines, verb, errno)
    if (
        lost is None
        and found.cause is None
        and lines
        and all(_SUMS_UP.search(told) for told in lines)
    ):
        found = _unsaid(opts, found)
    cause, cure = found.cause, found.cure
    if found.kind is PidInUseError:
        cause, cure = _who_has_the_pid(lines, cause, cure)

    what = (
        f"{verb} of pid {pid}"
        if pid is not None
        else f"{verb} from {outcome.images}"
        if outcome.images
        else str(verb)
    )
    if lost is not None:
        ending = str(lost) + _how_it_ended(line)
        cause = ending if cause is None else f"{ending}: {cause}"
    elif cause is None:
        if lines:
            cause = "CRIU says: " + lines[0]
        elif errno == EBADRQC:
            cause = "CRIU refuses an option and does not say which"
        else:
            cause = os.strerror(errno) if errno else "CRIU does not say why"
    told = f"{what} failed: {cause}"
    if outcome.log:
        told += f" ({outcome.log}{': ' + lines[0] if lines else ''})"
    elif lines and lines[0] not in told:
        told += f" ({lines[0]})"
    if cure:
        told += f"; {cure}"
    error = (found.kind if lost is None else type(lost))(
        told,
        verb=str(verb),
        pid=pid,
        code=outcome.result,
        errno=errno,
        log=outcome.log,
        lines=lines,
        cause=cause,
        cure=cure,
        options=found.options,
    )
    if isinstance(error, WorkerDiedError):
        error.status = line.status
    return error


def _how_it_ended(line: Line) -> str:
    """A worker's exit status in words, where it is known."""
    if line.status is None:
        return ""
    if line.status < 0:
        return f", killed by {signal.Signals(-line.status).name}"
    return f", with exit status {line.status}"


def _unsaid(opts: CriuOpts, found: Diagnosis) -> Diagnosis:
    """What the options say of a failure whose cause CRIU tells at ``log_level=3`` only."""
    server = opts.page_server
    if isinstance(server, PageServer) and not opts.lazy_pages:
        return Diagnosis(
            found.kind,
            "CRIU does not say why, as it does when the page server "
            f"{server.address}:{server.port} cannot be reached",
            "start it before the dump, and look at page_server's address and port; "
            "log_level=3 has CRIU say more",
            ("page_server",),
        )
    return Diagnosis(found.kind, "CRIU does not say why", "log_level=3 has it say more", ())


def _who_has_the_pid(
    lines: list[str], cause: str | None, cure: str | None
) -> tuple[str | None, str | None]:
    """Whether the pid that the images need belongs to a zombie, and to whose."""
    numbers = [re.search(r"fork for (\d+): File exists", line) for line in lines]
    taken = next((int(match[1]) for match in numbers if match), None)
    if taken is None:
        return cause, cure
    found = stat_of(taken)
    if found is None:
        return f"pid {taken} was taken", "it is free by now: try again"
    state, parent = found
    if state != "Z":
        return f"pid {taken} is taken by a running process", cure
    if parent == os.getpid():
        return (
            f"pid {taken} is a zombie child of this process",
            f"reap it with os.waitpid({taken}, 0) before the restore",
        )
    return (
        f"pid {taken} is a zombie that its parent, pid {parent}, has not reaped",
        f"have pid {parent} reap it, or end pid {parent}",
    )
