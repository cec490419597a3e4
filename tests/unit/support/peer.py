"""A Python process with one libcriu loaded, which runs functions on request over a pipe.

This file has the functions and ``Peer``, which starts the process and sends the requests.
Requests, results and exceptions are pickled.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pycriu_native import CriuOpts, Notification, UnsupportedError, ffi, lib
from pycriu_native._calls import requirements
from pycriu_native._calls.call import Call
from pycriu_native._calls.prepare import SERVERS, Directories, fill
from pycriu_native._calls.request import Request
from pycriu_native._native.ffi import functions, native
from pycriu_native._wire.messages import Handle, read
from pycriu_native._wire.requests import LIBCRIU_VERBS, DirectCall, LibcriuCall
from pycriu_native.enums import Verb
from pycriu_native.options.values import WireValue
from pycriu_native.testing import ScriptedCriu, directories_of, write_images

from .libraries import ROOT, Library

# ---- the functions ----


@dataclass(frozen=True)
class Filled:
    """The options as a libcriu handle encodes them."""

    request: bytes
    """The request that would be sent."""
    read: dict[str, WireValue]
    """The options' message, decoded with libcriu's descriptors."""
    directories: dict[str, str]
    """The directory behind each ``*_dir_fd`` of the request."""
    keep: list[int]
    """Descriptors that CRIU inherits."""


def filled(
    opts: CriuOpts,
    verb: Verb,
    pid: int | None = None,
    sibling: bool = False,
    shuffle: int = 0,
    turns: int = 1,
) -> Filled:
    """Set options on a handle without checks, and encode a request.

    ``shuffle`` selects an order other than the table's. ``turns`` is the number of repetitions; the
    last result is returned; all but the first can reuse the previous one.
    """
    ordered = _in_another_order(opts, shuffle) if shuffle else opts
    for _ in range(turns - 1):
        filled(opts, verb, pid, sibling)
    with ExitStack() as owned:
        request = Request(verb=verb, opts=opts, pid=pid, via=ScriptedCriu(), sibling=sibling)
        directories = Directories(request, owned)  # the order decides which descriptor each gets
        request = replace(request, opts=ordered)
        handle = owned.enter_context(Handle())
        keep = fill(handle, request, directories, owned)
        call = LibcriuCall(verb, handle) if verb in LIBCRIU_VERBS else DirectCall(verb, handle)
        sent = call.request()
        message = handle.wire()
        return Filled(sent, message, directories_of(message), keep)


class _Memory(ctypes.Structure):
    """The statistics of malloc (glibc's mallinfo2)."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in _names.split()]


def leaked(opts: CriuOpts, verb: Verb, pid: int, times: int) -> int:
    """Bytes of malloc's memory that this number of handles has not freed."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Memory
    taken = []
    for _ in range(4):
        for _ in range(times):
            filled(opts, verb, pid)
        gc.collect()
        taken.append(int(mallinfo2().uordblks))
    # A leak appears in every round; Python's caches grow in some rounds only.
    return min(after - before for before, after in itertools.pairwise(taken))


def _in_another_order(opts: CriuOpts, shuffle: int) -> CriuOpts:
    """An unused copy of the options with another order of fields."""
    again = replace(opts)
    items = list(again.items())
    random.Random(shuffle).shuffle(items)
    vars(again)["_items"] = tuple(items)
    return again


@dataclass(frozen=True)
class Called:
    """The request and the outcome of one call."""

    request: bytes
    directories: dict[str, str]
    result: int


def called(opts: CriuOpts, verb: Verb, pid: int | None) -> Called:
    """Run a complete call, checks included."""
    via = ScriptedCriu()
    directory = opts.images_directory
    if directory is not None:
        _furnish(directory, verb is Verb.RESTORE or bool(opts.lazy_pages and verb in SERVERS))
    request = Request(verb=verb, opts=opts, pid=pid, via=via, on_notify=_agree)
    requirements.check(request)
    outcome = Call(request).wait()
    return Called(via.sent[-1].data, dict(via.sent[-1].directories), outcome.result)


def _furnish(directory: Any, reads: bool) -> None:
    """Write images for a verb that reads them; others get an empty directory."""
    path = Path(directory if isinstance(directory, str) else f"/proc/self/fd/{directory}")
    for image in path.glob("*.img"):
        image.unlink()
    if reads:
        write_images(path)


def _agree(notification: Notification) -> None:
    """A hook that accepts everything, for options that need one."""


def checked(opts: CriuOpts, verb: Verb, pid: int | None) -> None:
    """Run only the checks of a call."""
    via = ScriptedCriu()
    requirements.check(Request(verb=verb, opts=opts, pid=pid, via=via, on_notify=_agree))


def supported(opts: CriuOpts, program: str = "99.0") -> None:
    """Refuse options that the loaded libcriu, or a CRIU of the release ``program``, lacks."""
    result = list(requirements.by_library(opts))
    result += requirements.by_program(opts, ScriptedCriu(program))
    if result:
        raise UnsupportedError(result)


def interface() -> tuple[dict[str, bool], list[str], list[str]]:
    """The functions of ``lib`` with their presence, its missing functions, its names."""
    return {name: lib.has(name) for name in functions()}, lib.missing(), dir(lib)


def function(name: str) -> bool:
    """Look up a function in ``lib``; returns whether it can be called."""
    return callable(getattr(lib, name))


def since(name: str) -> str:
    """The first release with a function."""
    return lib.since(name)


def ported_c() -> tuple[int, dict[str, WireValue]]:
    """The calls of a short C program, made only with functions of ``lib``."""
    handle = ffi.new("criu_opts **")
    status = lib.criu_local_init_opts(handle)
    lib.criu_local_set_leave_running(handle[0], True)
    lib.criu_local_set_log_level(handle[0], 4)
    lib.criu_local_add_external(handle[0], b"mnt[/a]:b")
    lib.criu_local_set_manage_cgroups_mode(handle[0], lib.CRIU_CG_MODE_FULL)
    message = read(native.pn_opts_message(handle[0]))
    lib.criu_local_free_opts(handle[0])
    return status, message


# ---- the process ----


class Peer:
    """The process with one library loaded; ``ask`` runs one of the functions above in it."""

    def __init__(self, library: Library, descriptors: Sequence[int] = ()) -> None:
        self.library = library
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=library.environment,
            cwd=ROOT,
            pass_fds=descriptors,
        )

    def ask(self, function: Any, *arguments: object, **named: object) -> Any:
        """Return the function's result, or raise its exception."""
        _put(self._process.stdin, (function.__name__, arguments, named))
        good, answer = _take(self._process.stdout)
        if not good:
            raise answer
        return answer

    def close(self) -> None:
        """Close the process's input, at whose end it exits, and wait."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        assert self._process.wait(60) == 0


def _put(stream: Any, value: object) -> None:
    data = pickle.dumps(value)
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def _take(stream: Any) -> Any:
    size = stream.read(8)
    if not size:
        raise EOFError("the process with the other libcriu has ended")
    return pickle.loads(stream.read(int.from_bytes(size, "little")))


def _serve() -> None:
    # The request does not depend on this machine's maximum pipe size.
    requirements.PIPE_MAX_SIZE = os.devnull
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # printed text cannot get into the results
    with questions, answers:
        while True:
            try:
                name, arguments, named = _take(questions)
            except EOFError:
                return
            try:
                answer = True, globals()[name](*arguments, **named)
            except Exception as error:
                answer = False, error
            _put(answers, answer)


if __name__ == "__main__":
    # Imported by its own name, so that results unpickle as the classes that the tests import.
    from tests.unit.support import peer

    peer._serve()
