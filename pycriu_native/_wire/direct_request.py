"""Requests without a function of libcriu, encoded with the codec that it exports.

``check`` is among them: libcriu sends it without options, and CRIU up to 4.1.1 crashes on that.
``libcriu_request.py`` takes the same two steps for the other requests.
"""

from __future__ import annotations

from ..enums import Verb
from ..options.values import WireValue
from .messages import EMPTY, REQUEST_TYPES, Handle, decode_response, encode
from .protobuf import varint

REFUSED = -52
"""EBADE: libcriu's verbs return it for a negative response."""

UNKNOWN = -22
"""EINVAL: libcriu's verbs return it if CRIU does not support the request."""

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
        """The encoded request: a message is the sequence of its fields."""
        return self._head + _OPTS_FIELD + varint(len(self._opts)) + self._opts

    def finish(self, answer: bytes) -> int:
        """0 for a positive response, else the value that libcriu's verbs return."""
        message = decode_response(answer) or {}
        if message.get("success"):
            return 0
        return UNKNOWN if message.get("type") == EMPTY else REFUSED
