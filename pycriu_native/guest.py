"""Parks a program at a point of its choice, so that a snapshot of it can be started many times.

The program loads what is slow to load, then calls :func:`wait`::

    from pycriu_native import guest

    model = load_model()
    start = guest.wait()        # a snapshot is taken here; returns once in each copy
    print(model.answer(sys.argv[1:]))

``pycriu_native.snapshots`` takes and starts snapshots. Without it, ``wait()`` returns None at once
and the program continues.

This file uses only the standard library. A copy of it next to the program is enough: the
package need not be installed where the program runs.

A program in another language does the same with one descriptor, a stream socket whose number is
in the variable ``PYCRIU_NATIVE_GUEST_FD``: it writes the line ``ready``, then reads one line. That
is a JSON object with the members of :class:`Start`; null members are not to be changed. End of
file in place of the line means that no snapshot was taken: the program ends.

Some state is the same in all copies and cannot be renewed: the seed of ``hash()``, stack canaries,
the layout of the address space, the pid inside the copy's pid namespace, and generators of random
numbers that the program has made itself: renew those in a function for :func:`after_start`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

__all__ = ["VARIABLE", "Start", "after_start", "before_snapshot", "wait"]

VARIABLE = "PYCRIU_NATIVE_GUEST_FD"
"""The environment variable with the number of the descriptor."""

READY = b"ready\n"
CHUNK = 65536


class Start(NamedTuple):
    """What one copy is started with."""

    number: int
    """The number of the start, from 1; no two copies of a snapshot have the same. 0 in the
    original, if that goes on after the snapshot (``leave_running``)."""
    arguments: list[str] | None
    """The arguments, without the program's name; ``sys.argv`` has them too. None: unchanged."""
    environment: dict[str, str] | None
    """All variables; ``os.environ`` has them too. None: unchanged."""
    variables: dict[str, str] | None
    """Variables that are added to the environment, or None."""
    directory: str | None
    """The new working directory. None: unchanged."""
    seed: str
    """64 random hexadecimal digits, for generators of random numbers."""


Hook = TypeVar("Hook", bound=Callable[..., object])

_before: list[Callable[[], object]] = []
_after: list[Callable[[Start], object]] = []
_descriptor: int | None = None


def before_snapshot(function: Hook) -> Hook:
    """Call ``function()`` before each snapshot: close connections, drop secrets. A decorator.

    The functions are called in the order in which they were given.
    """
    _before.append(function)
    return function


def after_start(function: Hook) -> Hook:
    """Call ``function(start)`` in each copy before :func:`wait` returns. A decorator.

    The functions are called in the order in which they were given; environment, arguments, working
    directory and the generators of random numbers are set by then.
    """
    _after.append(function)
    return function


def wait(*, collect: bool = True) -> Start | None:
    """Park the program for a snapshot; return once in each copy.

    ``sys.argv``, ``os.environ`` and the working directory are those of the start then, and the
    generators of random numbers of ``random``, numpy, PyTorch and OpenSSL (``ssl``), if they are
    loaded, are reseeded. A copy cannot be saved again: a later call in it raises
    ``SystemExit``.

    Args:
        collect: collect garbage and move all objects to the collector's permanent generation
            (``gc.freeze()``) before the snapshot: later collections then leave memory unwritten,
            which copies share.

    Returns:
        What the copy is started with; None where no snapshot is taken, and the program just runs.

    Raises:
        SystemExit: the process that takes the snapshot has ended, or has given up; or this is a
            copy.
        OSError: the working directory cannot be entered.
    """
    global _descriptor
    if _descriptor is None:
        if VARIABLE not in os.environ:
            return None
        _descriptor = int(os.environ[VARIABLE])
    os.environ.pop(VARIABLE, None)  # the programs that this one runs are not parked
    os.set_inheritable(_descriptor, False)
    for prepare in _before:
        prepare()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # or each copy writes what is buffered
    if collect:
        gc.collect()
        gc.freeze()
    _write(_descriptor, READY)
    start = Start(**json.loads(_read_line(_descriptor)))
    _apply(start)
    for resume in _after:
        resume(start)
    return start


def _write(descriptor: int, data: bytes) -> None:
    try:
        os.write(descriptor, data)
    except BrokenPipeError:
        raise SystemExit(_GIVEN_UP) from None


def _read_line(descriptor: int) -> bytes:
    """One line. Nothing follows it before the next :func:`wait`."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(descriptor, CHUNK)
        if not part:
            raise SystemExit(_GIVEN_UP)
        line += part
    return line


_GIVEN_UP = "the process that takes the snapshot has ended or given up"


def _apply(start: Start) -> None:
    if start.environment is not None:
        os.environ.clear()
        os.environ.update(start.environment)
    os.environ.update(start.variables or {})
    if start.arguments is not None:
        sys.argv[1:] = start.arguments
    if start.directory is not None:
        os.chdir(start.directory)
    if start.number:
        _reseed()


def _reseed() -> None:
    """Reseed the generators of the loaded modules, each with different bytes."""
    modules = sys.modules
    if (random := modules.get("random")) is not None:
        random.seed(os.urandom(64))
    if (numpy_random := modules.get("numpy.random")) is not None:
        numpy_random.seed(list(os.urandom(256)))
    if (torch := modules.get("torch")) is not None:
        torch.manual_seed(int.from_bytes(os.urandom(8), "little", signed=True))
    if (ssl := modules.get("ssl")) is not None:
        # OpenSSL notices a fork by its pid, which is the same in all copies.
        ssl.RAND_add(os.urandom(64), 64.0)
