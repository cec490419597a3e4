"""A Python process that has one libcriu loaded, and does as it is asked over a pipe.

Here: what the process can be asked (the functions), and ``Peer``, which starts it and asks.
Questions, answers and exceptions are pickled.
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
from pycriu_native._calls.prepare import Directories, fill
from pycriu_native._calls.request import Request
from pycriu_native._native.ffi import functions, native
from pycriu_native._wire.direct_request import DirectCall
from pycriu_native._wire.libcriu_request import LIBCRIU_VERBS, LibcriuCall
from pycriu_native._wire.messages import Handle, read
from pycriu_native.enums import Verb
from pycriu_native.options.values import WireValue
from pycriu_native.testing import ScriptedCriu, directories_of, write_images

from .libraries import ROOT, Library

# ---- what is asked ----


@dataclass(frozen=True)
class Filled:
    """What became of options in a handle of libcriu's."""

    request: bytes
    """What would be sent."""
    read: dict[str, WireValue]
    """The options' message, read back through libcriu's descriptors."""
    directories: dict[str, str]
    """Which directory each ``*_dir_fd`` of the request is."""
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
    """Put options into a handle, unchecked, and make a request of it.

    ``shuffle``: in another order than the table's, which this number chooses. ``turns``: so many
    times, and the last is what is returned; all but the first can build on the one before.
    """
    asked = _in_another_order(opts, shuffle) if shuffle else opts
    for _ in range(turns - 1):
        filled(opts, verb, pid, sibling)
    with ExitStack() as owned:
        request = Request(verb=verb, opts=asked, pid=pid, via=ScriptedCriu(), sibling=sibling)
        directories = Directories(opts, verb, owned)
        handle = owned.enter_context(Handle())
        keep = fill(handle, request, directories, owned)
        call = LibcriuCall(verb, handle) if verb in LIBCRIU_VERBS else DirectCall(verb, handle)
        sent = call.request()
        message = handle.wire()
        return Filled(sent, message, directories_of(message), keep)


class _Memory(ctypes.Structure):
    """What malloc says of itself (glibc's mallinfo2)."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in _names.split()]


def leaked(opts: CriuOpts, verb: Verb, pid: int, times: int) -> int:
    """Bytes of malloc's memory that so many handles have not given back."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Memory
    taken = []
    for _ in range(4):
        for _ in range(times):
            filled(opts, verb, pid)
        gc.collect()
        taken.append(int(mallinfo2().uordblks))
    # A leak is in every round; Python's own caches fill in some.
    return min(after - before for before, after in itertools.pairwise(taken))


def _in_another_order(opts: CriuOpts, shuffle: int) -> CriuOpts:
    """The same options, which nobody has applied yet, and whose fields come otherwise."""
    again = replace(opts)
    items = list(again.items())
    random.Random(shuffle).shuffle(items)
    vars(again)["_items"] = tuple(items)
    return again


@dataclass(frozen=True)
class Called:
    """What a whole call sent, and what came of it."""

    request: bytes
    directories: dict[str, str]
    result: int


def called(opts: CriuOpts, verb: Verb, pid: int | None) -> Called:
    """A call from end to end, checks included."""
    via = ScriptedCriu()
    directory = opts.images_directory
    if directory is not None:
        _furnish(directory, verb)
    request = Request(verb=verb, opts=opts, pid=pid, via=via, on_notify=_agree)
    requirements.check(request)
    outcome = Call(request).wait()
    return Called(via.sent[-1].data, dict(via.sent[-1].directories), outcome.result)


def _furnish(directory: Any, verb: Verb) -> None:
    """Images for a restore to find, and none for the others to abort_serving."""
    path = Path(directory if isinstance(directory, str) else f"/proc/self/fd/{directory}")
    for image in path.glob("*.img"):
        image.unlink()
    if verb is Verb.RESTORE:
        write_images(path)


def _agree(notification: Notification) -> None:
    """A hook, which some options need."""


def checked(opts: CriuOpts, verb: Verb, pid: int | None) -> None:
    """The checks of a call alone."""
    via = ScriptedCriu()
    requirements.check(Request(verb=verb, opts=opts, pid=pid, via=via, on_notify=_agree))


def supported(opts: CriuOpts, program: str = "99.0") -> None:
    """Refuse what the loaded libcriu, or a CRIU of the release ``program``, does not know."""
    result = list(requirements._by_library(opts))
    result += requirements._by_program(opts, ScriptedCriu(program))
    if result:
        raise UnsupportedError(result)


def interface() -> tuple[dict[str, bool], list[str], list[str]]:
    """What ``lib`` says: every function and whether it is there, what it misses, its names."""
    return {name: lib.has(name) for name in functions()}, lib.missing(), dir(lib)


def function(name: str) -> bool:
    """Look a function up in ``lib``, and tell whether it can be called."""
    return callable(getattr(lib, name))


def since(name: str) -> str:
    """The release that brought a function."""
    return lib.since(name)


def ported_c() -> tuple[int, dict[str, WireValue]]:
    """A few lines as a C program has them, with the functions of ``lib`` alone."""
    handle = ffi.new("criu_opts **")
    status = lib.criu_local_init_opts(handle)
    lib.criu_local_set_leave_running(handle[0], True)
    lib.criu_local_set_log_level(handle[0], 4)
    lib.criu_local_add_external(handle[0], b"mnt[/a]:b")
    lib.criu_local_set_manage_cgroups_mode(handle[0], lib.CRIU_CG_MODE_FULL)
    message = read(native.pn_opts_message(handle[0]))
    lib.criu_local_free_opts(handle[0])
    return status, message


# ---- asking ----


class Peer:
    """The process that has a library loaded; ``ask`` runs one of the functions above in it."""

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
        """What the function returns there, or raise what it raises there."""
        _put(self._process.stdin, (function.__name__, arguments, named))
        good, answer = _take(self._process.stdout)
        if not good:
            raise answer
        return answer

    def close(self) -> None:
        """Let it end by itself, as its input does."""
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
    # What is sent does not depend on how large this machine's pipes may be.
    requirements.PIPE_MAX_SIZE = os.devnull
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that prints can disturb the answers
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
    # Under its own name, so that what it sends is unpickled as what the tests import.
    from tests.unit.support import peer

    peer._serve()
