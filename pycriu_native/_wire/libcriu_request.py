"""libcriu's part of a call: it makes the request and turns the final answer into its result.

A verb of libcriu's is both at once: it sends the request, waits, and reads the answer. Here it is
called twice, each time against a socket in which an answer lies already, so that it never waits:
first with a refusal, to see what it asks for; then, when CRIU has answered
(``_calls/exchange.py``), with that answer, to see what it makes of it. It prints when it gets no
answer, or another verb's, and so is given neither.
"""

from __future__ import annotations

import errno
import os

from .._native.ffi import ffi, memory, native
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
        (Verb.FEATURE_CHECK, "pn_request_features"),
    )
}

_REFUSAL = encode("response", {"type": REQUEST_TYPES["empty"], "success": False})

_BEYOND_OPTIONS = 256
"""Bytes that a request adds to its options, at most."""


class LibcriuCall:
    """One libcriu verb, and the handle with its options."""

    def __init__(self, verb: Verb, handle: Handle) -> None:
        self._verb = verb
        self._handle = handle
        self._size = handle.packed_size() + _BEYOND_OPTIONS

    def request(self) -> bytes:
        """What libcriu asks of CRIU."""
        _, request = self._speak(_REFUSAL)
        if not request:
            raise MemoryError(f"libcriu could not make a request of {self._size} bytes")
        return request

    def finish(self, answer: bytes) -> int:
        """What libcriu's verb returns for this answer."""
        result, _ = self._speak(answer)
        return result

    def _speak(self, answer: bytes) -> tuple[int, bytes]:
        """What the verb returns for an answer, and what it has sent, if it came so far."""
        response, given = memory("uint8_t[]", self._size), ffi.from_buffer(answer)
        talk = ffi.new("struct pn_exchange *")
        talk.answer, talk.n_answer = given, len(answer)
        talk.said, talk.size = response, self._size
        status = native.pn_run_verb(self._handle.pointer, LIBCRIU_VERBS[self._verb], talk)
        if status == -errno.E2BIG:
            rule = f"the options take {self._size} bytes; {talk.room} fit into one request here"
            problem = Problem("options", "all of them", rule)
            raise OptionError([problem], verb=str(self._verb))
        if status:
            raise OSError(-status, os.strerror(-status))
        return talk.result, bytes(ffi.buffer(response, talk.n_said))
