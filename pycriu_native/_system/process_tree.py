"""Processes in /proc: a tree of them, and waiting for its end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable

from .._support.kernel_text import escaped, read_lines, read_text
from .._support.unpatched import sleep


def frozen_cgroup(pid: int) -> str | None:
    """The frozen cgroup (v2) that a process is in; None if it is in none."""
    try:
        lines = read_lines(f"/proc/{pid}/cgroup")
        name = next((line[3:] for line in lines if line.startswith("0::")), None)
        if name in (None, "/"):
            return None  # the root has no events, and cannot be frozen
        mounts = read_lines("/proc/self/mountinfo")
        mount = next((line.split(" ")[4] for line in mounts if " - cgroup2 " in line), None)
        if mount is None:
            return None
        return mount + name if "frozen 1" in read_text(f"{mount}{name}/cgroup.events") else None
    except OSError:
        return None  # gone


def is_in_cgroup(pid: int, directory: str) -> bool:
    """Whether a process is in the cgroup of this directory, or in one below it."""
    try:
        if str(pid) in read_lines(f"{directory}/cgroup.procs"):
            return True
        with os.scandir(directory) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return False  # it is no cgroup
    return any(is_in_cgroup(pid, path) for path in below)


LISTENING = "0A"
"""TCP_LISTEN, as /proc/net/tcp prints it."""


def process_tree(pid: int) -> list[int]:
    """The pids of a process and of all below it; those that end meanwhile may be missing."""
    result = [pid]
    for parent in result:
        result += children_of(parent)
    return result


def children_of(pid: int) -> list[int]:
    """The pids of a process's children, zombies included."""
    result: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return result
    for task in tasks:
        with contextlib.suppress(OSError):  # the thread has ended
            result += map(int, read_small(f"/proc/{pid}/task/{task}/children").split())
    return result


def is_above(pid: int, below: int) -> bool:
    """Whether ``below`` is the process of ``pid``, which may be a thread's number, or descends
    from it. Ancestors in outer pid namespaces have no number here.
    """
    leader = int(status_of(pid).get("Tgid", 0))
    root, result = stat_of(leader), stat_of(below)
    if root is None or result is None or root[2] > result[2]:
        return False  # whatever is above a process is older than it
    while below not in (0, leader):
        result = stat_of(below)
        below = 0 if result is None else result[1]
    return below == leader


def listener_on(port: int, seconds: float) -> int | None:
    """The pid of the process that listens on a TCP port of our network namespace.

    It may be forking just now: it is looked for again for so many seconds.
    """
    until = time.monotonic() + seconds
    while True:
        result = _find_listener(port)
        if result is not None or time.monotonic() > until:
            return result
        sleep(0.005)


def _find_listener(port: int) -> int | None:
    inodes = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table) as file:
            for line in file.readlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == LISTENING and int(local.rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{inode}]")
    import glob  # it is wanted here only, and takes long to import

    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(link) in inodes:
                return int(link.split("/")[2])
    return None


def stat_of(pid: int) -> tuple[str, int, int] | None:
    """State letter and parent of a process, and its start, in clock ticks of CLOCK_BOOTTIME; None
    where there is none.
    """
    try:
        fields = read_small(f"/proc/{pid}/stat", once=True).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0].decode(), int(fields[1]), int(fields[19])


def name_of(pid: int) -> str:
    """What a process calls itself, for a message."""
    try:
        return escaped(read_text(f"/proc/{pid}/comm").removesuffix("\n"))
    except OSError:
        return "gone by now"


def holders(but: Collection[int] = ()) -> dict[int, tuple[int, str]]:
    """The numbers of sessions and process groups: a process in each, and which of both it is.

    The kernel gives such a number to no new process. ``but``: processes that do not count.
    """
    result: dict[int, tuple[int, str]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in but:
            with contextlib.suppress(OSError):
                fields = read_small(f"/proc/{name}/stat", once=True).rpartition(b")")[2].split()
                result.setdefault(int(fields[2]), (int(name), "process group"))
                result[int(fields[3])] = int(name), "session"
    return result


def read_small(path: str, *, once: bool = False) -> bytes:
    """A small file, or what one read gives of it: Python's file objects take their time."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while more := os.read(fd, 4096):
            text += more
            if once:
                break
        return text
    finally:
        os.close(fd)


def status_of(pid: int) -> dict[str, str]:
    """What /proc/PID/status says of a process or thread; nothing where there is none."""
    try:
        pairs = [line.partition(":") for line in read_lines(f"/proc/{pid}/status")]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, _, value in pairs if name}


def half_restored(images: str, since: float) -> list[int]:
    """The processes that a lost CRIU has begun to make from images, and told nobody of.

    They have left its process group, and have another parent by now. A process has a pid of the
    images, which was free for CRIU to take, and is younger than the call: ``since`` is its
    beginning, in seconds of CLOCK_BOOTTIME. (Of a pid namespace of its own, CRIU tells.)
    """
    result = []
    ticks = os.sysconf("SC_CLK_TCK")
    try:
        names = os.listdir(images)
    except OSError:
        return []
    for name in names:
        pid = name.removeprefix("core-").removesuffix(".img")
        if f"core-{pid}.img" != name or not pid.isascii() or not pid.isdigit():
            continue
        if status_of(int(pid)).get("Tgid") != pid:
            continue  # there is none, or the number is a thread's
        stat = stat_of(int(pid))
        if stat is not None and stat[2] >= int(since * ticks):
            result.append(int(pid))
    return result


def wait_until_gone(
    pids: Iterable[int], seconds: float, is_hurried: Callable[[], bool] = lambda: False
) -> bool:
    """Wait until no process has any of these pids; False if one stays.

    ``is_hurried`` is asked whether to wait no longer. A zombie child of ours is not waited for:
    only the caller can reap it.
    """
    until = time.monotonic() + seconds
    pause = 0.0005
    ours = False
    remaining = list(pids)
    while remaining:
        still = []
        for pid in remaining:
            result = stat_of(pid)
            if result is None:
                continue
            if result[1] == os.getpid():
                ours = True
            else:
                still.append(pid)
        remaining = still
        if remaining:
            if time.monotonic() > until or is_hurried():
                return False
            sleep(pause)
            pause = min(pause * 2, 0.05)
    return not ours


def end_processes(pids: Iterable[int], seconds: float, *, kill: bool) -> None:
    """Wait for the end of half-restored processes; ``kill``: CRIU did not live to kill them."""
    until = time.monotonic() + seconds
    remaining = list(pids)
    while remaining and time.monotonic() < until:
        if kill:
            for pid in remaining:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        remaining = [pid for pid in remaining if (stat_of(pid) or "Z")[0] not in ("Z", "X")]
        if remaining:
            sleep(0.001)
