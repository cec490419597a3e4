"""One process or thread in ``/proc`` (proc(5))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from io import FileIO

from .._support.frozen_dataclass import dataclass
from .._support.kernel_text import escaped, read_text
from .host import read


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """Fields of ``/proc/PID/stat``."""

    name: str
    """At most 15 bytes, as ``os.fsdecode`` returns them."""
    state: str
    """One letter, such as R, S, D, T, Z."""
    parent: int
    group: int
    session: int
    terminal: int
    """The device number of the controlling terminal, as the kernel packs it; 0 for none."""
    foreground: int
    """The process group in the foreground of that terminal; -1 for none."""
    start: int
    """Clock ticks of CLOCK_BOOTTIME."""

    @property
    def has_ended(self) -> bool:
        """Whether it is a zombie or about to be removed."""
        return self.state in ("Z", "X")


def stat_of(pid: int, thread: int | None = None) -> ProcessStat | None:
    """The stat of a process, or of one of its threads; None where there is none.

    ``pid`` can be the number of a thread too.
    """
    text = _text_of(pid, "stat", thread, once=True)
    if not text:
        return None
    head, _, tail = text.rpartition(b")")
    fields = tail.split()
    name, state = os.fsdecode(head.partition(b"(")[2]), fields[0].decode()
    return ProcessStat(name, state, *map(int, (*fields[1:6], fields[19])))


def _text_of(pid: int, name: str, thread: int | None = None, *, once: bool = False) -> bytes:
    """A file of a process or of one of its threads; empty where there is none.

    Also where the caller may not see it: /proc hides the processes of others with the mount option
    ``hidepid``.
    """
    part = "" if thread is None else f"/task/{thread}"
    try:
        return read_small(f"/proc/{pid}{part}/{name}", once=once)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def is_running(pid: int) -> bool:
    """Whether there is a process with this pid that is no zombie."""
    stat = stat_of(pid)
    return stat is not None and not stat.has_ended


def status_of(pid: int, thread: int | None = None) -> dict[str, str]:
    """The fields of ``/proc/PID/status`` of a process or thread; empty where there is none."""
    text = os.fsdecode(_text_of(pid, "status", thread))
    pairs = [line.partition(":") for line in text.split("\n")]
    return {name: value.strip() for name, _, value in pairs if name}


def own_number_of(pid: int) -> int:
    """The pid of a process in its own pid namespace; ``pid`` if the process has ended."""
    return int(status_of(pid).get("NSpid", str(pid)).split()[-1])


def leader_of(number: int) -> int | None:
    """The pid of the process of a thread; its own for a process, None where there is neither."""
    status = _text_of(number, "status")
    return int(status.partition(b"\nTgid:")[2].partition(b"\n")[0]) if status else None


def comm_of(pid: int) -> str:
    """The name of a process, for a message; empty where there is none."""
    return escaped(read(f"/proc/{pid}/comm").removesuffix("\n"))


def name_of(pid: int) -> str:
    """The name of a process, for a message, or a phrase where it has ended."""
    return comm_of(pid) or "a process that has ended"


def threads_of(pid: int) -> list[int]:
    """The numbers of the threads of a process; empty where there is none."""
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    except OSError:
        return []


def children_of(pid: int) -> list[int]:
    """The pids of the children of a process.

    The children of a thread that ends become those of another thread, which may have been read
    before: they are read until two results agree.
    """
    before: list[int] | None = None
    for _ in range(10):
        result: list[int] = []
        threads = threads_of(pid)
        for thread in threads:
            with contextlib.suppress(OSError):  # the thread has ended
                result += map(int, read_small(f"/proc/{pid}/task/{thread}/children").split())
        if len(threads) < 2 or result == before:
            break
        before = result
    return result


def bytes_read(pid: int) -> int:
    """Bytes that a process has read (``rchar`` of ``/proc/PID/io``); ``OSError``."""
    return int(read_text(f"/proc/{pid}/io").split()[1])


def all_pids() -> Iterator[int]:
    """The pids of all processes in the caller's pid namespace."""
    return map(int, filter(str.isdigit, os.listdir("/proc")))


def read_small(path: str, *, once: bool = False) -> bytes:
    """The contents of a small file, or the result of one read. Faster than a buffered file.

    Unlike a descriptor, the file is closed too if a signal's handler raises just after its opening.
    """
    with FileIO(path) as file:
        text = file.read(4096)
        while not once and (more := file.read(4096)):
            text += more
        return text
