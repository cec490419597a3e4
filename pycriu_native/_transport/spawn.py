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
"""The environment of each worker, to which the caller can add. CRIU reads a configuration file in
HOME, which is therefore a directory that only root can write."""

GLOBAL_CONFIGURATION = "/etc/criu/default.conf"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpawnOptions:
    """How a worker is started."""

    detached: bool = False
    """It is not a child of the caller: for the dump of a process tree that contains the caller."""
    private_files: bool = False
    """It creates files for its own user only: umask 077."""
    block_signals: bool = False
    """SIGTERM, SIGHUP, SIGINT and SIGQUIT are blocked."""
    ignore_sigxfsz: bool = False
    """SIGXFSZ is ignored: a write beyond the file size limit fails with EFBIG."""


def configuration_paths(env: Mapping[str, str]) -> list[str]:
    """The files that a worker with this environment reads at its start (``criu/config.c``): the
    system's, that in HOME, and that of CRIU_CONFIG_FILE, if it is set.
    """
    environment = {**FIXED_ENVIRONMENT, **env}
    named = environment.get("CRIU_CONFIG_FILE")
    files = [GLOBAL_CONFIGURATION, os.path.join(environment["HOME"], ".criu/default.conf")]
    return files if named is None else [*files, named]


DEFAULT_SPAWN_OPTIONS = SpawnOptions()

SAVING = SpawnOptions(private_files=True, block_signals=True, ignore_sigxfsz=True)
"""For dumps: images contain secrets, and a signal that kills CRIU can kill the dumped process."""

RESTORING = SpawnOptions(ignore_sigxfsz=True)
"""For restores: created files get the mode that they had, so the umask is not changed."""


def spawn(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: int,
    output: int,
    keep: Sequence[int],
    spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS,
    namespaces: int = 0,
) -> tuple[int, int]:
    """Start ``arguments[0]``, an absolute path. Returns its pid and a pidfd.

    ``stdin`` -1 is /dev/null. ``output`` becomes its standard output and error. It inherits the
    descriptors in ``keep`` under the same numbers, and no others. ``namespaces`` are the
    ``CLONE_NEW*`` flags of its new namespaces.
    Raises ``ProgramError``.
    """
    argv = [ffi.new("char[]", os.fsencode(argument)) for argument in arguments]
    environment = {**FIXED_ENVIRONMENT, **env}
    envp = [
        ffi.new("char[]", os.fsencode(f"{name}={value}")) for name, value in environment.items()
    ]
    fds = ffi.new("int[]", list(keep))
    # A cffi structure does not keep what it points to alive; these variables do.
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
    worker.detached = spawn_options.detached
    worker.private_files = spawn_options.private_files
    worker.block_signals = spawn_options.block_signals
    worker.ignore_sigxfsz = spawn_options.ignore_sigxfsz
    worker.namespaces = namespaces
    status = native.pn_spawn(worker)
    if status:
        code = -status
        raise ProgramError(
            f"{arguments[0]} could not be started: {os.strerror(code)}"
            + ("; its interpreter or loader is missing" if code == errno.ENOENT else ""),
            errno=code,
        )
    return int(worker.pid), int(worker.pidfd)
