"""The regular files that a process tree can change: open for writing, or mapped so.

Also temporary files that it has written and reads now.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .._support.kernel_text import escaped
from .._support.unpatched import close, closing
from .._system.descriptors import descriptor_info
from .._system.mappings import ranges_with
from .._system.mountinfo import mounts_of
from .._system.process_snapshot import Process
from ..errors import OptionError, Problem
from .index import SavedName, saved_name
from .option import Rollback
from .patterns import matches
from .restored_file import is_before

INTERFACES = frozenset(
    (
        *("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf"),
        *("configfs", "mqueue", "selinuxfs", "pstore", "efivarfs", "binfmt_misc", "fusectl"),
        *("rpc_pipefs", "nsfs"),
    )
)
"""File systems whose files are interfaces of the kernel: their content is no state of a process."""

COMPANIONS = ("-journal", "-wal", "-shm")
"""Suffixes of SQLite's journals. A journal that is newer than the checkpoint would be applied to
the database of the checkpoint (sqlite.org, "Hot Rollback Journals")."""


LARGEST_READ = 256 * 2**20
"""Largest file in bytes that is saved although it is open for reading only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFile:
    """A file that is to be saved."""

    path: str
    """Its name in the caller's mount namespace."""
    opened: str
    """The name by which it is opened for reading: that of /proc, or ``path``."""
    stat: os.stat_result
    appended: bool
    """Whether each descriptor that is open for writing has O_APPEND, and no process maps the
    file."""
    pid: int
    """A process that has it open; 0 for a file that is named by the caller."""
    kind: str
    """The type of its file system; empty if unknown."""
    read_only: bool = False
    """Whether no process can change it, but it was changed since the given time."""

    @property
    def identity(self) -> tuple[int, int]:
        return self.stat.st_dev, self.stat.st_ino


def written_files(
    pids: Iterable[int], rollback: Rollback
) -> tuple[list[WrittenFile], list[SavedName]]:
    """The files, each once, and names that exist but need no copy.

    With those that are open for reading only and are not larger than ``LARGEST_READ``, if they were
    changed after ``changed_since``. Deleted files are left out: they are saved by CRIU. The names
    are the open named pipes and, of what matches ``also``, symbolic links, directories and other
    names of the files. Raises ``OptionError`` that names every file that cannot be saved.
    """
    kinds = {mount.number: mount.kind for mount in mounts_of("self")}
    files: dict[tuple[int, int], WrittenFile] = {}
    names: dict[str, SavedName] = {}
    problems: list[Problem] = []
    ours = Process(os.getpid()).namespace("mnt")
    for process in map(Process, pids):
        is_here = process.namespace("mnt") == ours
        names |= _named_pipes(process) if is_here else {}
        for use in _uses(process, kinds, rollback.changed_since):
            known = files.get(use.identity)
            if known is not None and (use.read_only or not known.read_only):
                if known.appended and not (use.appended or use.read_only):
                    files[use.identity] = use
                continue
            why = _refusal(use) if is_here else "is in another mount namespace than the caller"
            if why and use.read_only:
                continue
            files[use.identity] = use
            if why and not _has_changed(use):
                text = f"{escaped(use.path)}, which pid {process.pid} can write, {why}"
                problems.append(Problem("files", "rollback", text))
    if problems:
        raise OptionError(problems, verb="dump")
    _add_matching(rollback, files, names)
    return list(files.values()), list(names.values())


def _add_matching(
    rollback: Rollback, files: dict[tuple[int, int], WrittenFile], names: dict[str, SavedName]
) -> None:
    """Add what matches ``also``, and the journals of the files that processes can change."""
    changed = [use.path for use in files.values() if not use.read_only]
    journals = [name for path in changed for name in patterns_for(path)]
    patterns = *journals, *map(str, rollback.also)
    for path in matches(patterns, map(str, rollback.ignore)):
        if is_before(path):
            continue
        with contextlib.suppress(OSError):
            seen = os.stat(path, follow_symlinks=False)
            known = files.get((seen.st_dev, seen.st_ino))
            if not stat.S_ISREG(seen.st_mode):
                names[path] = saved_name(path, seen)
            elif known is None or known.read_only:
                use = WrittenFile(path=path, opened=path, stat=seen, appended=False, pid=0, kind="")
                files[use.identity] = use
            elif known.path != path:
                names[path] = saved_name(path, seen, same_as=known.path)


def _named_pipes(process: Process) -> dict[str, SavedName]:
    """The named pipes that a process has open, by their paths."""
    result = {}
    for fd in process.descriptors:
        if stat.S_ISFIFO(fd.stat.st_mode) and not fd.is_pipe:
            with contextlib.suppress(OSError):
                seen = os.stat(fd.link, follow_symlinks=False)
                if os.path.samestat(seen, fd.stat):
                    result[fd.link] = saved_name(fd.link, seen)
    return result


def patterns_for(path: str) -> list[str]:
    """Glob patterns of files that belong to a file."""
    return [glob.escape(path) + ending for ending in COMPANIONS]


def _refusal(use: WrittenFile) -> str:
    """Why a file cannot be saved; empty if it can."""
    try:
        there = os.stat(use.path, follow_symlinks=False)
    except OSError as error:
        return f"has other names than the one by which it was opened ({error.strerror})"
    if (there.st_dev, there.st_ino) != use.identity:
        return "has lost its name to another file"
    if use.kind == "hugetlbfs":
        return "is in huge pages, which cannot be written back"
    try:
        close(os.open(use.opened, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _has_changed(use: WrittenFile) -> bool:
    """Whether a running process has closed the file meanwhile, or the file was renamed."""
    try:
        seen = os.stat(use.opened)
        name = os.readlink(use.opened) if use.opened != use.path else use.path
    except OSError:
        return True
    return (seen.st_dev, seen.st_ino) != use.identity or name != use.path


def _uses(
    process: Process, kinds: dict[int, str], changed_since: float | None
) -> Iterator[WrittenFile]:
    for fd in process.descriptors:
        if fd.flags & os.O_PATH:
            continue
        read_only = fd.flags & os.O_ACCMODE == os.O_RDONLY
        if read_only and (
            changed_since is None
            or fd.stat.st_ctime < changed_since
            or fd.stat.st_size > LARGEST_READ
        ):
            continue
        kind = kinds.get(fd.mount, "")
        if _is_kept(fd.stat, kind):
            yield WrittenFile(
                path=fd.link,
                opened=fd.path,
                stat=fd.stat,
                appended=bool(fd.flags & os.O_APPEND) and not read_only,
                pid=process.pid,
                kind=kind,
                read_only=read_only,
            )
    for name, link in _mapped(process):
        with contextlib.suppress(OSError):
            with _looked_at(link, name) as number:
                kind = kinds.get(int(descriptor_info("self", number)["mnt_id"][0]), "")
                seen = os.fstat(number)
            usable = link if os.access(link, os.R_OK) else name
            if _is_kept(seen, kind):
                yield WrittenFile(
                    path=name, opened=usable, stat=seen, appended=False, pid=process.pid, kind=kind
                )


def _is_kept(seen: os.stat_result, kind: str) -> bool:
    """Whether a file in a file system of this kind has content that a process keeps there."""
    return stat.S_ISREG(seen.st_mode) and bool(seen.st_nlink) and kind not in INTERFACES


@contextlib.contextmanager
def _looked_at(link: str, name: str) -> Iterator[int]:
    """A mapped file. /proc/PID/map_files needs a capability in the first user namespace."""
    try:
        number = os.open(link, os.O_PATH | os.O_CLOEXEC)
    except PermissionError:
        number = os.open(name, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    with closing(number):
        yield number


def _mapped(process: Process) -> Iterator[tuple[str, str]]:
    """Name and link of each mapping that changes its file, now or after an mprotect(2)."""
    shared = [each for each in process.mappings if each.shared and each.inode]
    sure = [each for each in shared if "w" in each.rights]
    if len(sure) < len(shared):
        writable = set(ranges_with(process.pid, "mw"))  # they may become writable
        sure += [each for each in shared if each not in sure and each.range in writable]
    for each in sure:
        if each.name.startswith("/"):
            yield each.name, each.link
