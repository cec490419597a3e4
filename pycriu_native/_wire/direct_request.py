"""Requests that libcriu has no function for: made with the codec that it exports.

``check`` is among them: libcriu sends it without options, and CRIU up to 4.1.1 crashes on that.

The counterpart of ``libcriu_request.py``: the same two steps.
"""

from __future__ import annotations

from ..enums import Verb
from ..options.values import WireValue
from .messages import EMPTY, REQUEST_TYPES, Handle, decode_response, encode

REFUSED = -52
"""EBADE, as libcriu's verbs return it when CRIU says no."""

UNKNOWN = -22
"""EINVAL, as they return it when CRIU does not know the request."""

_OPTS_FIELD = b"\x12"
"""The key of ``opts`` in a ``CriuReq``: field 2, with a length."""


class DirectCall:
    """A request with the options of a handle."""

    def __init__(self, verb: Verb, handle: Handle, *, keep_open: bool = False) -> None:
        head: dict[str, WireValue] = {"type": REQUEST_TYPES[str(verb)]}
        if keep_open:
            head["keep_open"] = True
        self._head = encode("request", head)
        self._opts = handle.packed()

    def request(self) -> bytes:
        """What is asked of CRIU: a message is the sequence of its fields."""
        return self._head + _OPTS_FIELD + _varint(len(self._opts)) + self._opts

    def finish(self, answer: bytes) -> int:
        """0 for an answer that says yes, else what libcriu's verbs return."""
        message = decode_response(answer) or {}
        if message.get("success"):
            return 0
        return UNKNOWN if message.get("type") == EMPTY else REFUSED


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
