"""What a ``criu`` takes over from the process that starts it, at the time that it starts it.

A worker that was started ahead is as good as a fresh one only while nothing of this has
changed: CRIU works in the namespaces, the root, the cgroup, with the rights and the limits that
its process was born with, and reads its configuration files as it starts. Linux keeps most of
this for each thread, so it is asked on the thread that makes the call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ._ffi import native

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


def surroundings(env: Mapping[str, str]) -> Surroundings | None:
    """What a worker with this environment would take over from this thread, to be compared.

    None where /proc cannot tell: then nothing is known to be the same.
    """
    here = "/proc/thread-self/"
    try:
        namespaces = tuple(_link(f"{here}ns/{name}") for name in NAMESPACES)
        stat = _read(f"{here}stat").rpartition(b")")[2].split()
        status = _read(f"{here}status").split(b"\n")
        files = tuple(_optional(here + name) for name in WHOLE_FILES)
        return (
            namespaces,
            _place("/"),
            _place("."),
            tuple(stat[field] for field in STAT_FIELDS),
            tuple(line for line in status if line.startswith(STATUS_LINES)),
            files,
            native.pn_io_priority(),
            tuple(_file(path) for path in _configuration(env)),
        )
    except OSError:
        return None


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""  # this kernel has no such namespace


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while more := os.read(fd, 65536):
            text += more
        return text
    finally:
        os.close(fd)


def _optional(path: str) -> bytes | None:
    try:
        return _read(path)
    except OSError:
        return None  # no security module, for one


def _place(path: str) -> tuple[int, int, bytes]:
    """A directory, and the mount through which it is seen."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        mount = _read(f"/proc/thread-self/fdinfo/{fd}").partition(b"mnt_id:")[2].split(None, 1)[0]
        return found.st_dev, found.st_ino, mount
    finally:
        os.close(fd)


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
