"""Starting a ``criu`` process: the Python side of ``native/spawn.c``."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from .._native.ffi import ffi, native
from .._support.frozen_dataclass import dataclass
from ..errors import ProgramError
from .program import SEARCH_PATH

FIXED_ENVIRONMENT = {"PATH": SEARCH_PATH, "HOME": "/"}
"""What a worker's environment is, but for what its caller adds. In CRIU's home directory is a
configuration file, so it is one that root alone can write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpawnOptions:
    """In which way a worker is started."""

    outside: bool = False
    """It is to be no child of ours, for a dump of a tree that we are in."""
    private: bool = False
    """The files that it creates are for its own user only."""
    steady: bool = False
    """Signals that ask it to end (SIGTERM and the like) wait until it has ended by itself."""
    limited: bool = False
    """A write beyond its file size limit fails, and does not end it: SIGXFSZ is ignored."""

    bound_to: tuple[int, ...] = ()
    """Stream sockets that it inherits (``bond.py``): its process group is killed each time that
    the other end of one is closed."""


DEFAULT_SPAWN_OPTIONS = SpawnOptions()

SAVING = SpawnOptions(private=True, steady=True, limited=True)
"""Images hold secrets; and a signal that ends CRIU in a dump can cost the process its life."""

RESTORING = SpawnOptions(limited=True)
"""What a restore creates has the mode that it had."""


def spawn(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: int,
    output: int,
    keep: Sequence[int],
    spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS,
    namespaces: int = 0,
) -> tuple[int, int]:
    """Start ``words[0]``, an absolute path; its pid and a pidfd of it.

    ``stdin`` -1 is /dev/null; ``output`` becomes its standard output and error; ``keep`` it
    gets under the same numbers, and no other descriptor. ``namespaces`` are the ``CLONE_NEW*``
    flags of the namespaces that it gets.
    Raises ``ProgramError``.
    """
    argv = [ffi.new("char[]", os.fsencode(word)) for word in words]
    environment = {**FIXED_ENVIRONMENT, **env}
    envp = [
        ffi.new("char[]", os.fsencode(f"{name}={value}")) for name, value in environment.items()
    ]
    bound_to = ffi.new("int[]", spawn_options.bound_to)
    keep = [*keep, *spawn_options.bound_to]
    fds = ffi.new("int[]", list(keep))
    # cffi keeps no reference to what a structure points to: these names do.
    argv_array = ffi.new("char *[]", [*argv, ffi.NULL])
    envp_array = ffi.new("char *[]", [*envp, ffi.NULL])
    worker = ffi.new("struct pn_worker *")
    worker.program = argv[0]
    worker.argv = argv_array
    worker.envp = envp_array
    worker.input = stdin
    worker.output = output
    worker.keep = fds
    worker.n_keep = len(keep)
    worker.outside = spawn_options.outside
    worker.private_files = spawn_options.private
    worker.steady = spawn_options.steady
    worker.limited = spawn_options.limited
    worker.bound_to = bound_to
    worker.n_bound_to = len(spawn_options.bound_to)
    worker.namespaces = namespaces
    status = native.pn_spawn(worker)
    if status:
        code = -status
        raise ProgramError(
            f"{words[0]} could not be started: {os.strerror(code)}"
            + ("; its interpreter or loader is missing" if code == errno.ENOENT else ""),
            errno=code,
        )
    return int(worker.pid), int(worker.pidfd)
