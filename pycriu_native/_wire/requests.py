"""The two steps of a request: its bytes, and the result for CRIU's final response.

A verb of libcriu does both: it sends the request, waits, and reads the response. ``LibcriuCall``
calls it twice, each time on a socket that already holds a response, so that it never waits: first
with a refusal, to obtain its request; then with CRIU's final response (``_calls/exchange.py``), to
obtain the result. libcriu prints an error if it receives no response or that of another verb, so it
is called with neither.

``DirectCall`` encodes requests without a function of libcriu with the codec that it exports.
``check`` is among them: libcriu sends it without options, and CRIU up to 4.1.1 crashes on that.
"""

from __future__ import annotations

import errno

from .._native.ffi import checked, ffi, memory, native
from .._support.light_typing import Any
from .._support.no_fork import no_fork
from ..enums import Verb
from ..errors import OptionError, Problem
from ..options.values import WireValue
from .messages import EMPTY, REQUEST_TYPES, Handle, decode_response, encode

LIBCRIU_VERBS: dict[Verb, Any] = {
    verb: ffi.addressof(native, name)
    for verb, name in (
        (Verb.DUMP, "criu_local_dump"),
        (Verb.PRE_DUMP, "criu_local_pre_dump"),
        (Verb.RESTORE, "criu_local_restore"),
        (Verb.VERSION, "criu_local_get_version"),
        (Verb.FEATURE_CHECK, "pn_feature_check"),
    )
}

_REFUSAL = encode("response", {"type": EMPTY, "success": False})

_OTHER_FIELDS = 256
"""Largest size in bytes of the fields of a request other than its options."""


class LibcriuCall:
    """One libcriu verb and the handle with its options."""

    def __init__(self, verb: Verb, handle: Handle) -> None:
        self._verb = verb
        self._handle = handle
        self._size = handle.packed_size() + _OTHER_FIELDS

    def request(self) -> bytes:
        """The request that libcriu sends."""
        _, request = self._run_verb(_REFUSAL)
        if not request:
            raise MemoryError(f"libcriu could not make a request of {self._size} bytes")
        return request

    def finish(self, response: bytes) -> int:
        """The return value of libcriu's verb for this response."""
        result, _ = self._run_verb(response)
        return result

    def _run_verb(self, response: bytes) -> tuple[int, bytes]:
        """The verb's return value, and its request (empty if it sent none)."""
        request, data = memory("uint8_t[]", self._size), ffi.from_buffer(response)
        exchange = ffi.new("struct pn_exchange *")
        exchange.response, exchange.n_response = data, len(response)
        exchange.request, exchange.request_capacity = request, self._size
        status = native.pn_run_verb(self._handle.pointer, LIBCRIU_VERBS[self._verb], exchange)
        if status == -errno.E2BIG:
            rule = f"the options take {self._size} bytes; one request holds {exchange.max_size}"
            problem = Problem("options", "all of them", rule)
            raise OptionError([problem], verb=str(self._verb))
        checked(status)
        return exchange.result, bytes(ffi.buffer(request, exchange.n_request))


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
        with no_fork:
            from .protobuf import message  # few verbs need it

        return self._head + message((2, self._opts))  # ``opts`` of a ``CriuReq``

    def finish(self, response: bytes) -> int:
        """0 for a positive response, else the value that libcriu's verbs return."""
        answer = decode_response(response) or {}
        if answer.get("success"):
            return 0
        # Not supported by CRIU, or a negative response.
        return -errno.EINVAL if answer.get("type") == EMPTY else -errno.EBADE
