"""Starting a ``criu`` process: the Python side of ``native/spawn.c``."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from ._ffi import ffi, native
from ._program import SEARCH_PATH
from .errors import ProgramError

FIXED_ENVIRONMENT = {"PATH": SEARCH_PATH, "HOME": "/"}
"""What a worker's environment is, but for what its caller adds. In CRIU's home directory is a
configuration file, so it is one that root alone can write."""


def spawn(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: int,
    output: int,
    keep: Sequence[int],
    outside: bool = False,
    private: bool = False,
) -> tuple[int, int]:
    """Start ``words[0]``, an absolute path; its pid and a pidfd of it.

    ``stdin`` -1 is /dev/null; ``output`` becomes its standard output and error; ``keep`` it
    gets under the same numbers, and no other descriptor. ``outside``: no child of ours.
    ``private``: what it creates is for its own user only. Raises ``ProgramError``.
    """
    argv = [ffi.new("char[]", os.fsencode(word)) for word in words]
    environment = {**FIXED_ENVIRONMENT, **env}
    envp = [
        ffi.new("char[]", os.fsencode(f"{name}={value}")) for name, value in environment.items()
    ]
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
    worker.outside = outside
    worker.private_files = private
    status = native.pn_spawn(worker)
    if status:
        code = -status
        raise ProgramError(
            f"{words[0]} could not be started: {os.strerror(code)}"
            + ("; its interpreter or loader is missing" if code == errno.ENOENT else ""),
            errno=code,
        )
    return int(worker.pid), int(worker.pidfd)
