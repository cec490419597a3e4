"""Open files, mapped files, programs, working directories and roots.

A file must be on a mount that CRIU finds, and its path must lead to it. A deleted file is copied
into the images, up to ``ghost_limit`` (``criu/files-reg.c``: ``dump_one_reg_file``,
``check_path_remap``, ``dump_ghost_remap``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..._support.unpatched import closing
from ..._system.descriptors import PATH_TOO_LONG, copied, descriptor_info, link, links_of
from ..._system.process import all_pids
from ..._system.process_snapshot import Descriptor, Process
from ..._system.system_calls import file_system_type
from ...findings import Finding
from .context import Context, Findings, lost, no_restore, note, on, stops

DEFAULT_GHOST_LIMIT = 1 << 20
"""CRIU's default, in bytes."""
MQUEUE = 0x19800202
"""``f_type`` of the file system of message queues (``ipc/mqueue.c``)."""
WITHOUT_FILE = ("/memfd:", "/SYSV", "/dev/zero", "/anon_hugepage", "/[aio]")
"""Names of the kernel for memory without a file, which look like paths."""
OF_A_PROCESS = re.compile(r"/proc/\d+")
"""Paths behind which CRIU writes a slash, over the end of the text (``check_path_remap``)."""
LOCKS = ("POSIX", "FLOCK", "OFDLCK", "LEASE")
MOST_PIPES = 1024
"""CRIU's limit (``NR_PIPES_WITH_DATA``)."""


@dataclass(frozen=True, slots=True)
class Used:
    """A file that a process uses: open, mapped, its program, its directory or its root."""

    pid: int
    fd: int | None
    what: str
    """What it is to the process, for messages."""
    path: str
    """The path in /proc."""
    stat: os.stat_result
    mount: int

    @property
    def blocks(self) -> int:
        """Allocated bytes: CRIU since 3.18 compares them with ghost_limit."""
        return self.stat.st_blocks * 512

    @property
    def identity(self) -> tuple[int, int]:
        return self.stat.st_dev, self.stat.st_ino

    @property
    def about(self) -> dict[str, Any]:
        """The arguments of a finding on it."""
        return {"pid": self.pid, "fd": self.fd, "path": self.path}


def look(context: Context) -> Findings:
    seen: set[tuple[object, ...]] = set()
    for used in all_used(context):
        key = (used.identity, used.path, used.mount)
        if key in seen:
            continue
        seen.add(key)
        if finding := _place(context, used):
            yield finding
    yield from _locks(context)
    yield from _pipes(context)
    yield from _too_many_pipes(context)


def all_used(context: Context) -> Iterator[Used]:
    """Files with a path; devices only if CRIU treats them as files."""
    for process in context.tree.alive:
        for fd in process.descriptors:
            if _has_a_place(fd):
                yield Used(
                    process.pid, fd.number, "a file that it has open", fd.link, fd.stat, fd.mount
                )
        for name, what in (("cwd", "its directory"), ("root", "its root"), ("exe", "its program")):
            yield from _opened(process, f"/proc/{process.pid}/{name}", what)
        mapped = {
            (mapping.device, mapping.inode, mapping.name): mapping.link
            for mapping in process.mappings
            if mapping.name.startswith("/")
            and mapping.inode
            and not mapping.name.startswith(WITHOUT_FILE)
        }
        for path in mapped.values():
            yield from _opened(process, path, "a file that it has mapped")


@cache
def _memory_device() -> int:
    with closing(os.memfd_create("device")) as number:
        return os.fstat(number).st_dev


def is_memory(fd: Descriptor) -> bool:
    """Whether a descriptor is memory without a name, which CRIU saves like a memfd.

    It can be that of a shared mapping, opened through ``/proc/PID/map_files``.
    """
    return fd.link.startswith("/memfd:") or (
        stat.S_ISREG(fd.stat.st_mode) and fd.stat.st_dev == _memory_device()
    )


def _has_a_place(fd: Descriptor) -> bool:
    mode = fd.stat.st_mode
    if not fd.link.startswith("/") or is_memory(fd):
        return False
    if stat.S_ISCHR(mode):
        return is_plain_device(fd.device)
    return not stat.S_ISSOCK(mode) and not stat.S_ISBLK(mode)


def is_plain_device(device: tuple[int, int]) -> bool:
    """Devices that CRIU opens again like files: memory (null, zero, random, kmsg), autofs."""
    return device[0] == 1 or device in ((10, 235), (10, 200))


def _opened(process: Process, path: str, what: str) -> Iterator[Used]:
    """A file without a descriptor. O_PATH opens it without access to its contents."""
    flags = os.O_PATH | os.O_CLOEXEC
    with contextlib.suppress(OSError), closing(os.open(path, flags)) as number:
        mount = descriptor_info("self", number)["mnt_id"][0]
        yield Used(process.pid, None, what, link(path), os.fstat(number), int(mount))


def _place(context: Context, used: Used) -> Finding | None:
    """Whether CRIU finds the file by its path."""
    key = f"file[{used.mount:x}:{used.stat.st_ino:x}]"
    if context.external(key):
        return None
    if used.path == PATH_TOO_LONG:
        rule = f"the path of {used.what} is longer than the 4095 bytes that CRIU can read"
        return stops("path-too-long", rule, failure="path-too-long", **used.about)
    mount = context.mounts.by_number.get(used.mount)
    if mount is None:
        return _on_no_mount(used, key)
    if context.mounts.covered(mount):
        return stops(
            "covered", f"{used.what} is covered by a mount", failure="overmounted", **used.about
        )
    if mount.kind == "proc" and _is_of_a_thread(used):
        return no_restore(
            "thread-file",
            f"{used.what} is in /proc, and that of a thread",
            failure="thread-file",
            cure="close it before the dump",
            **used.about,
        )
    if mount.kind == "proc" and OF_A_PROCESS.fullmatch(used.path):
        message = f"{used.what} is that of a process in /proc, whose path CRIU writes wrongly"
        return no_restore("process-directory", message, failure="process-directory", **used.about)
    if mount.kind in ("proc", "devpts"):
        return None
    if used.stat.st_nlink == 0:
        return _nameless(context, used)
    return _path(context, used, context.mounts.base(mount) + used.path)


def _on_no_mount(used: Used, key: str) -> Finding:
    if used.fd is not None and _is_message_queue(used):
        return stops(
            "message-queue",
            "it has a POSIX message queue open, which CRIU cannot save",
            failure="fd-mount",
            cure="make the program close it before the dump; or save its descriptor with "
            f'external=["{key}"], and give one of mq_open on the restore: '
            f'inherit_fds=[(fd, "{key}")]',
            **used.about,
        )
    if used.fd is None and used.path.startswith("/memfd:"):
        message = f"{used.what} is a memfd, which CRIU saves and cannot restore"
        cure = "start it from a file"
        return no_restore("memfd-program", message, failure="img-no-file", cure=cure, **used.about)
    return stops(
        "no-mount",
        f"{used.what} is on no mount of its mount namespace: it is from outside of the "
        "container, or on something unmounted",
        failure="fd-mount",
        cure="close it, or start the process with separate descriptors; or save it with "
        f'external="{key}" and pass a file with inherit_fds on restore',
        **used.about,
    )


def _path(context: Context, used: Used, path: str) -> Finding | None:
    """Whether the path leads to the file."""
    try:
        result = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        if _has_changed(used):
            return None
        if stat.S_ISDIR(used.stat.st_mode):
            message = f"{used.what} was removed, and is in a file system of the kernel"
            return stops("removed-directory", message, failure="removed-directory", **used.about)
        return context.needs(
            "name-gone",
            f"{used.what} is no longer where it was, but has other names",
            cure="set link_remap=True; a link named link_remap.NUMBER is made for it",
            sets={"link_remap": True},
            failure="link-remap",
            **used.about,
        )
    except OSError:
        return None
    if (result.st_dev, result.st_ino) == used.identity or _has_changed(used):
        return None
    if stat.S_ISCHR(used.stat.st_mode) and result.st_rdev == used.stat.st_rdev:
        return context.needs(
            "other-device-file",
            f"the path of {used.what} now leads to another file of the same device",
            cure="evasive_devices=True",
            sets={"evasive_devices": True},
            failure="evasive",
            **used.about,
        )
    return stops(
        "name-taken",
        f"the path of {used.what} now leads to another file",
        failure="evasive",
        cure="restore the file that was opened",
        **used.about,
    )


def _is_of_a_thread(used: Used) -> bool:
    """Whether a path in /proc is that of a thread, which CRIU makes after it has opened files."""
    before, _, after = used.path.partition("/task/")
    return bool(after) and after.partition("/")[0] != before.rpartition("/")[2]


def _is_message_queue(used: Used) -> bool:
    """Whether a file is on the file system of POSIX message queues."""
    with contextlib.suppress(OSError):
        return file_system_type(f"/proc/{used.pid}/fd/{used.fd}") == MQUEUE
    return False


def _has_changed(used: Used) -> bool:
    """Whether the descriptor has been closed, or its file deleted, since it was read."""
    if used.fd is None:
        return False
    try:
        result = os.stat(f"/proc/{used.pid}/fd/{used.fd}")
    except OSError:
        return True
    return (result.st_dev, result.st_ino) != used.identity or result.st_nlink == 0


def _nameless(context: Context, used: Used) -> Finding:
    given = context.opts.ghost_limit
    limit = DEFAULT_GHOST_LIMIT if given is None else given
    taken = used.stat.st_size if context.is_older_than("3.18") else used.blocks
    if taken <= limit:
        return note("deleted", f"{used.what} is deleted: its {taken} bytes are saved", **used.about)
    words = f"{used.what} is deleted, and takes {taken} bytes, above the limit of {limit} bytes"
    if taken >= 1 << 32:
        return stops(
            "deleted-too-large",
            words,
            failure="ghost-limit",
            cure="close it, or give it a name: ghost_limit ends at 4 GiB",
            **used.about,
        )
    return context.needs(
        "deleted-large",
        words,
        cure=f"ghost_limit={taken} or more",
        sets={"ghost_limit": taken},
        failure="ghost-limit",
        **used.about,
    )


def ghosts(context: Context) -> int:
    """Bytes of all deleted files."""
    result = {
        used.identity: used.blocks
        for used in all_used(context)
        if used.stat.st_nlink == 0 and not stat.S_ISDIR(used.stat.st_mode)
    }
    return sum(result.values())


def _locks(context: Context) -> Findings:
    for fd in context.tree.descriptors():
        for lock in fd.info.get("lock", ()):
            kind = next((word for word in lock.split() if word in LOCKS), "file")
            yield context.needs(
                "file-lock",
                f"it holds a {kind} lock",
                sets={"file_locks": True},
                failure="file-locks",
                **on(fd),
            )
            break


def _too_many_pipes(context: Context) -> Findings:
    """CRIU has tables of fixed size for the contents of pipes and of FIFOs."""
    read: dict[bool, set[int]] = {True: set(), False: set()}
    for fd in context.tree.descriptors():
        if stat.S_ISFIFO(fd.stat.st_mode) and not fd.flags & (os.O_WRONLY | os.O_PATH):
            read[fd.is_pipe].add(fd.stat.st_ino)
    if (count := max(map(len, read.values()))) > MOST_PIPES:
        message = f"{count} pipes are open for reading, of which CRIU saves {MOST_PIPES}"
        yield stops("too-many-pipes", message, failure="too-many-pipes")


def _pipes(context: Context) -> Findings:
    """Pipes of which the tree has one end only: the other is outside, or closed."""
    ends: dict[int, set[int]] = {}
    first: dict[int, Descriptor] = {}
    for fd in context.tree.descriptors():
        if not fd.is_pipe:
            continue
        inode = fd.stat.st_ino
        if fd.flags & os.O_DIRECT and inode not in context.mounts.autofs_pipes:
            message = "a pipe keeps what is written apart (O_DIRECT), which CRIU cannot save"
            yield stops("packet-pipe", message, pid=fd.pid, fd=fd.number, failure="pipe-packets")
        ends.setdefault(inode, set()).add(fd.flags & os.O_ACCMODE)
        first.setdefault(inode, fd)
    half = {
        inode
        for inode, modes in ends.items()
        if not (modes >= {os.O_RDONLY, os.O_WRONLY} or os.O_RDWR in modes)
    }
    for inode in sorted(half & _held_outside(context, half)):
        fd = first[inode]
        yield lost(
            "pipe-outside",
            "a pipe leads to a process outside of the tree",
            cure=f'give it another one on restore: inherit_fds=[(fd, "{fd.link}")]',
            **on(fd),
        )


def queued(context: Context) -> int:
    """Bytes in the pipes and FIFOs of the tree."""
    sizes: dict[tuple[int, int], int] = {}
    for fd in context.tree.descriptors():
        identity = fd.stat.st_dev, fd.stat.st_ino
        if stat.S_ISFIFO(fd.stat.st_mode) and identity not in sizes:
            sizes[identity] = unread_bytes(fd)
    return sum(sizes.values())


def unread_bytes(fd: Descriptor) -> int:
    """Bytes that can be read from a pipe or similar; 0 if that is not known."""
    with contextlib.suppress(OSError), copied(fd.pid, fd.number) as number:
        answer = fcntl.ioctl(number, termios.FIONREAD, bytes(4))
        return int.from_bytes(answer, sys.byteorder)
    return 0


def _held_outside(context: Context, inodes: set[int]) -> set[int]:
    """Those of these pipes that a process outside of the tree has open."""
    expected = {f"pipe:[{inode}]": inode for inode in inodes}
    result: set[int] = set()
    if not expected:
        return result
    for pid in all_pids():
        if pid not in context.tree.pids:
            result |= {expected[target] for _, target in links_of(pid) if target in expected}
    return result
