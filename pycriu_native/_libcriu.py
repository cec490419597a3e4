"""libcriu's part of a call: it makes the request and turns the final answer into its result.

A verb of libcriu's is both at once: it sends the request, waits, and reads the answer. Here it is
called twice, each time against a socket in which an answer lies already, so that it never waits:
first with a refusal, to see what it asks for; then, when CRIU has answered (``_exchange.py``),
with that answer, to see what it makes of it. It prints when it gets no answer, or another
verb's, and so is given neither.
"""

from __future__ import annotations

from collections.abc import Callable

from ._ffi import ffi, native
from ._later import socket
from ._line import socket_pair, widen
from ._message import REQUEST_TYPES, Handle, encode
from ._typing import Any
from .enums import Verb
from .errors import OptionError, Problem

LIBCRIU_VERBS: dict[Verb, Callable[[Any], int]] = {
    Verb.DUMP: native.criu_local_dump,
    Verb.PRE_DUMP: native.criu_local_pre_dump,
    Verb.RESTORE: native.criu_local_restore,
    Verb.VERSION: native.criu_local_get_version,
    Verb.FEATURE_CHECK: lambda handle: _feature_check(handle),
}

_REFUSAL = encode("response", {"type": REQUEST_TYPES["empty"], "success": False})

_BEYOND_OPTIONS = 256
"""Bytes that a request adds to its options, at most."""

LARGEST_REQUEST = 4 * 2**20
"""Bytes that the kernel carries in one message of a unix socket, however large its buffer: all
but the last 64 KiB must be one piece of its memory, which has no larger ones."""

FITS_ANYWAY = 2048
"""Bytes that fit into a socket's buffer, however small the system makes it: the least that the
kernel gives one is about twice that (SOCK_MIN_SNDBUF)."""


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
        ours, theirs = socket_pair()
        with ours, theirs:
            if self._size > FITS_ANYWAY:
                self._make_room(theirs)
            ours.sendall(answer)
            # libcriu closes the descriptor that it is given.
            native.criu_local_set_service_fd(self._handle.pointer, theirs.detach())
            result = LIBCRIU_VERBS[self._verb](self._handle.pointer)
            try:
                return result, ours.recv(self._size)
            except ConnectionResetError:  # it had no memory even for a look at the answer
                return result, b""

    def _make_room(self, theirs: socket.socket) -> None:
        widen(theirs)
        buffer = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        room = min(buffer - _BEYOND_OPTIONS, LARGEST_REQUEST)
        if self._size > room:
            rule = f"the options take {self._size} bytes; {room} fit into one request here"
            problem = Problem("options", "all of them", rule)
            raise OptionError([problem], verb=str(self._verb))


def _feature_check(handle: Any) -> int:
    features = ffi.new("struct criu_feature_check *", [1, 1, 1, 1])
    result: int = native.criu_local_feature_check(handle, features, native.pn_features_size())
    return result
