"""The request of a call, and CRIU's response to it. Loaded while CRIU starts."""

from __future__ import annotations

from .._support.light_typing import cast
from .._wire.messages import Handle
from .._wire.requests import LIBCRIU_VERBS, DirectCall, LibcriuCall
from ..errors import CriuError, ProtocolError, WorkerDiedError
from ..options.values import WireValue
from .exchange import Exchange
from .request import Request


def converse(
    request: Request, handle: Handle, exchange: Exchange
) -> tuple[int, dict[str, WireValue], CriuError | None]:
    """Send the request. Returns the result, CRIU's response, and the error if CRIU was lost."""
    verb = request.verb
    call: LibcriuCall | DirectCall
    if verb in LIBCRIU_VERBS:
        call = LibcriuCall(verb, handle)
    else:
        call = DirectCall(verb, handle, keep_open=request.keep_connection)
    try:
        answer, data = exchange.run(call.request())
    except (WorkerDiedError, ProtocolError) as lost:
        return -1, {}, lost
    result = call.finish(data)
    if result < 0 and answer["success"]:
        result = _result_of(answer)  # libcriu ran out of memory after CRIU's work
    return result, answer, None


def _result_of(answer: dict[str, WireValue]) -> int:
    """The result of libcriu's function for a successful response."""
    for part, value in (("restore", "pid"), ("dump", "restored")):
        body = answer.get(part)
        if isinstance(body, dict):
            return int(cast(int, body.get(value, 0)))
    return 0
