"""The part of a call with a running worker: the request, the end of the connection, statistics."""

from __future__ import annotations

from .._integrity import statistics as statistics_module
from .._recovery.half_restored import end_processes, half_restored
from .._support.light_typing import cast
from .._transport.connection import Connection
from .._wire.direct_request import DirectCall
from .._wire.libcriu_request import LIBCRIU_VERBS, LibcriuCall
from .._wire.messages import Handle
from ..enums import Verb
from ..errors import CriuError, ProtocolError, WorkerDiedError
from ..options.values import WireValue
from ..results import DumpStatistics, RestoreStatistics
from .exchange import Exchange
from .failure import failure_of
from .request import Request

__all__ = [
    "converse",
    "end",
    "end_processes",
    "failure_of",
    "half_restored",
    "statistics_of",
]


def converse(
    request: Request, handle: Handle, exchange: Exchange
) -> tuple[int, dict[str, WireValue], CriuError | None]:
    """Send the request. Returns the result, CRIU's response, and the error if CRIU was lost."""
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
        result = _result_of(answer)  # libcriu ran out of memory after CRIU's work
    return result, answer, None


def _result_of(answer: dict[str, WireValue]) -> int:
    """What libcriu's function returns for a response of success."""
    for part, value in (("restore", "pid"), ("dump", "restored")):
        body = answer.get(part)
        if isinstance(body, dict):
            return int(cast(int, body.get(value, 0)))
    return 0


def end(connection: Connection, request: Request, *, succeeded: bool) -> None:
    """End the connection; CRIU ends by itself, or has become another program."""
    if succeeded and request.opts.exec_cmd is not None:
        connection.detach()
    elif succeeded and request.verb is not Verb.RESTORE:
        connection.close_async()
    else:
        if request.verb is Verb.PRE_DUMP:
            connection.kill()  # a killed child of it may have left processes in its group
        connection.wait()  # until its end, CRIU is the parent of the restored processes


def statistics_of(
    request: Request, directory: int | None
) -> DumpStatistics | RestoreStatistics | None:
    """CRIU's statistics of a call that succeeded, where it writes any."""
    verb = request.verb
    if directory is None:
        return None
    if verb is Verb.DUMP and request.opts.lazy_pages:
        return None  # CRIU counts anew when it serves pages, and then writes wrong numbers
    if verb in (Verb.DUMP, Verb.PRE_DUMP):
        return statistics_module.read_dump(directory)
    return statistics_module.read_restore(directory) if verb is Verb.RESTORE else None
