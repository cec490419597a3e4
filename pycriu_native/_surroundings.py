"""What a ``criu`` takes over from the process that starts it, at the time that it starts it.

A worker that was started ahead is as good as a fresh one only while nothing of this has
changed: CRIU works in the namespaces, the root, the cgroup, with the rights and the limits that
its process was born with, and reads its configuration files as it starts. Linux keeps most of
this for each thread, so it is asked on the thread that makes the call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ._ffi import ffi, native

NAMESPACES = (
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid_for_children",
    "time_for_children",
    "user",
    "uts",
)

WHOLE_FILES = (
    "attr/current",
    "attr/exec",
    "cgroup",
    "limits",
    "oom_score_adj",
    "personality",
    "timerslack_ns",
)
"""Files of /proc that are compared as they are: security labels, cgroups, rlimits, and the like."""

STATUS_LINES = (
    b"Umask:",
    b"Uid:",
    b"Gid:",
    b"Groups:",
    b"CapInh:",
    b"CapPrm:",
    b"CapEff:",
    b"CapBnd:",
    b"CapAmb:",
    b"NoNewPrivs:",
    b"Seccomp:",
    b"Seccomp_filters:",
    b"THP_enabled:",
    b"Cpus_allowed:",
    b"Mems_allowed:",
)
"""Lines of /proc/PID/status: rights, file mode mask, filters of system calls, processors."""

STAT_FIELDS = (3, 4, 15, 16, 37, 38)
"""Fields of /proc/PID/stat behind the name: session, terminal, priority, nice, real-time priority
and policy. (Field 3 of proc_pid_stat(5) is the first one behind the name, 0 here.)"""

GLOBAL_CONFIGURATION = "/etc/criu/default.conf"

Surroundings = tuple[object, ...]


HERE = "/proc/thread-self/"

_LINKS = tuple(f"{HERE}ns/{name}" for name in NAMESPACES)
_FILES = tuple(HERE + name for name in ("stat", "status", *WHOLE_FILES))
_FIXED = [ffi.new("char[]", path.encode()) for path in (*_LINKS, *_FILES)]

USUAL, LARGEST = 2**15, 2**20
"""Bytes of all these files together; a process in very many groups has more than usual."""


def surroundings(env: Mapping[str, str]) -> Surroundings | None:
    """What a worker with this environment would take over from this thread, to be compared.

    None where /proc cannot tell: then nothing is known to be the same.
    """
    opened: list[int] = []
    try:
        for path in ("/", "."):
            opened.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        told = _read([f"{HERE}fdinfo/{fd}" for fd in opened])
        if told is None:
            return None
        links, (stat, status, *files, root, directory) = told[: len(_LINKS)], told[len(_LINKS) :]
        if stat is None or status is None or root is None or directory is None:
            return None
        fields = stat.rpartition(b")")[2].split()
        return (
            tuple(links),  # None: this kernel has no such namespace
            tuple(
                (at.st_dev, at.st_ino, mount.partition(b"mnt_id:")[2].split(None, 1)[0])
                for at, mount in zip(map(os.fstat, opened), (root, directory), strict=True)
            ),
            tuple(fields[field] for field in STAT_FIELDS),
            tuple(line for line in status.split(b"\n") if line.startswith(STATUS_LINES)),
            tuple(files),  # None: there is no security module, for one
            native.pn_io_priority(),
            tuple(_file(path) for path in _configuration(env)),
        )
    except OSError:
        return None
    finally:
        for fd in opened:
            os.close(fd)


def _read(more: Sequence[str]) -> list[bytes | None] | None:
    """The fixed links and files and these, each None where it cannot be read; None: too much.

    All in one go: a thread that reads in Python gives up Python's lock at each step.
    """
    paths = [*_FIXED, *(ffi.new("char[]", path.encode()) for path in more)]
    array = ffi.new("char *[]", paths)
    lengths = ffi.new("int[]", len(paths))
    size = USUAL
    while size <= LARGEST:
        buffer = ffi.new("char[]", size)
        if not native.pn_read_files(array, len(_LINKS), len(paths), buffer, size, lengths):
            found: list[bytes | None] = []
            at = 0
            for length in lengths:
                found.append(None if length < 0 else ffi.buffer(buffer + at, length)[:])
                at += max(0, length)
            return found
        size *= 2
    return None


def _file(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _configuration(env: Mapping[str, str]) -> list[str]:
    """The files that CRIU reads as it starts (``criu/config.c``)."""
    home = env.get("HOME", "/")
    named = env.get("CRIU_CONFIG_FILE")
    return [
        GLOBAL_CONFIGURATION,
        os.path.join(home, ".criu/default.conf"),
        *([] if named is None else [named]),
    ]
