"""libcriu's part of a call: it builds the request and converts the final response into a result.

A verb of libcriu does both: it sends the request, waits, and reads the response. Here it is called
twice, each time on a socket that already holds a response, so that it never waits: first with a
refusal, to obtain its request; then with CRIU's final response (``_calls/exchange.py``), to obtain
the result. libcriu prints an error if it receives no response or that of another verb, so it is
called with neither.
"""

from __future__ import annotations

import errno

from .._native.ffi import checked, ffi, memory, native
from .._support.light_typing import Any
from ..enums import Verb
from ..errors import OptionError, Problem
from .messages import REQUEST_TYPES, Handle, encode

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

_REFUSAL = encode("response", {"type": REQUEST_TYPES["empty"], "success": False})

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
