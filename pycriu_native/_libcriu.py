"""libcriu's part of a call: it makes the request and turns the final answer into its result.

The verb runs on a thread that no signal reaches (``native/call.c``), against one end of a
socketpair; we hold the other, and stand between it and CRIU (``_exchange.py``). Whatever
happens, libcriu gets an answer: left alone it would print, and its thread would wait.
"""

from __future__ import annotations

import contextlib
import os
import socket

from ._ffi import ffi, native
from ._line import socket_pair, widen
from ._message import REQUEST_TYPES, Handle, encode
from ._owned import Owned
from ._typing import Any
from .enums import Verb
from .errors import CriuError, OptionError, Problem

LIBCRIU_VERBS: dict[Verb, int] = {
    Verb.DUMP: native.PN_DUMP,
    Verb.PRE_DUMP: native.PN_PRE_DUMP,
    Verb.RESTORE: native.PN_RESTORE,
    Verb.VERSION: native.PN_GET_VERSION,
    Verb.FEATURE_CHECK: native.PN_FEATURE_CHECK,
}

_BEYOND_OPTIONS = 256
"""Bytes that a request adds to its options, at most."""

LARGEST_REQUEST = 4 * 2**20
"""Bytes that the kernel carries in one message of a unix socket, however large its buffer: all
but the last 64 KiB must be one piece of its memory, which has no larger ones."""


class LibcriuCall(Owned):
    """One libcriu verb under way; used as a context, so that its thread always ends."""

    def __init__(self, verb: Verb, handle: Handle) -> None:
        self._verb = verb
        self._features = ffi.new("struct criu_feature_check *", [1, 1, 1, 1])
        self._size = handle.packed_size() + _BEYOND_OPTIONS
        self._ours, theirs = socket_pair()
        widen(theirs)
        buffer = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        room = min(buffer - _BEYOND_OPTIONS, LARGEST_REQUEST)
        if self._size > room:
            self._ours.close()
            theirs.close()
            rule = f"the options take {self._size} bytes; {room} fit into one request here"
            raise OptionError([Problem("options", "all of them", rule)], verb=str(verb))
        # libcriu closes the descriptor that it is given.
        end = theirs.detach()
        native.criu_local_set_service_fd(handle.pointer, end)
        self._call: Any = native.pn_call_start(LIBCRIU_VERBS[verb], handle.pointer, self._features)
        if self._call == ffi.NULL:
            self._ours.close()
            os.close(end)
            raise CriuError(f"{verb}: no thread could be started for libcriu", verb=str(verb))

    def request(self) -> bytes:
        """What libcriu asks of CRIU."""
        request = self._ours.recv(self._size)
        if not request:
            raise MemoryError(f"libcriu could not make a request of {self._size} bytes")
        return request

    def finish(self, answer: bytes) -> int:
        """Hand libcriu CRIU's final answer; what its verb returns."""
        self._ours.sendall(answer, socket.MSG_NOSIGNAL)
        return self._join()

    def _join(self) -> int:
        call, self._call = self._call, None
        result: int = native.pn_call_join(call)
        self._ours.close()
        return result

    def close(self) -> None:
        """End its thread, with an answer if it has none yet."""
        if self._call is not None:
            refusal = encode("response", {"type": REQUEST_TYPES["empty"], "success": False})
            with contextlib.suppress(OSError):  # it has given up by itself
                self._ours.sendall(refusal, socket.MSG_NOSIGNAL)
            self._join()
