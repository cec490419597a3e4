"""Memory: mappings that CRIU cannot save (``criu/proc_parse.c``: ``handle_vma``)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from ..._support.unpatched import close, closing
from ..._system.mappings import Mapping, droppable_of, has_guard_pages, is_kernel_memory
from ..._system.mountinfo import mounts_of
from ..._system.process_snapshot import Process
from .context import Context, Findings, lost, no_restore, note, stops
from .files import WITHOUT_FILE
from .objects import device

ZERO = os.makedev(1, 5)


def look(context: Context) -> Findings:
    old = context.is_older_than("4.2")
    # The library does not change these images: see ``_integrity.droppable_memory``.
    keeps = os.getpid() in context.tree.pids or context.in_force("page_server") is not None
    for process in context.tree.alive:
        if old and _is_guarded(process):
            message = "it has guard pages (MADV_GUARD_INSTALL), which CRIU before 4.2 cannot dump"
            yield stops("guard-pages", message, failure="guard-pages", pid=process.pid)
        if old and keeps and droppable_of(process.pid):
            yield lost(
                "random-numbers",
                "glibc keeps the state of getrandom() in memory that a fork empties "
                "(MAP_DROPPABLE), and CRIU before 4.2 saves its content, which the library cannot "
                "remove from the images of this dump: processes that are restored from the same "
                "images, and their children, can get equal random numbers",
                cure="CRIU 4.2 or later, or a dump by another process without page_server",
                pid=process.pid,
            )
        seen: set[str] = set()
        for mapping in process.mappings:
            if mapping.name not in seen:
                result = list(_mapping(context, process, mapping))
                if result:
                    seen.add(mapping.name)
                yield from result


def _mapping(context: Context, process: Process, mapping: Mapping) -> Findings:
    name = mapping.name
    about = {"pid": process.pid, "path": name}
    if name == "anon_inode:[io_uring]":
        if not any(fd.link == name for fd in process.descriptors):  # reported with the descriptor
            yield stops(
                "io-uring", "it uses io_uring, which CRIU cannot save", failure="io-uring", **about
            )
    elif name.startswith("anon_inode:"):
        message = "it has memory mapped from an object of the kernel that CRIU cannot save"
        yield stops("kernel-memory", message, failure="anon-map", **about)
    elif name.startswith("/SYSV") and not context.tree.has_own("ipc"):
        message = "it uses System V shared memory of the host, which other processes may use too"
        yield stops("sysv-memory", message, failure="sysv-shm", **about)
    elif name == "[uprobes]" and context.opts.config_file is None:
        yield context.needs(
            "uprobes",
            "a tracing tool has set a uprobe in it",
            sets={"allow_uprobes": True},
            failure="uprobes",
            **about,
        )
    elif name.startswith("/memfd:"):
        if _is_sealed(mapping):
            message = (
                "it has mapped a memfd with F_SEAL_WRITE as shared, through a descriptor that was "
                "open for writing"
            )
            yield no_restore("memfd-sealed", message, failure="memfd-sealed", **about)
    elif name.startswith("/sys/") and mapping.inode:
        # CRIU accepts a shared one, and a container can have files of another kind there.
        if not mapping.shared and is_kernel_memory(mapping):
            message = "it has mapped a file of sysfs, which is memory of the kernel or of a device"
            yield stops("mapped-sysfs", message, failure="unsupported-mapping", **about)
    elif name.startswith("/[aio]"):
        message = "it uses asynchronous I/O (io_submit); the dump fails if requests are under way"
        yield note("aio", message, **about)
    elif what := _without_a_name(context, mapping):
        yield stops(
            "mapped-file-without-a-name",
            f"it has mapped a file {what}, and CRIU has no right to open it (/proc/PID/map_files)",
            failure="mapfile",
            **about,
        )
    elif name.startswith("/dev/") and mapping.inode and not name.startswith("/dev/shm/"):
        with contextlib.suppress(OSError):
            seen = os.stat(mapping.link)
            if stat.S_ISCHR(seen.st_mode) and seen.st_rdev != ZERO:
                numbers = os.major(seen.st_rdev), os.minor(seen.st_rdev)
                yield device(process.pid, numbers, name)


def _is_sealed(mapping: Mapping) -> bool:
    """Whether a restore would map a memfd so that it cannot get its seal against writing.

    The kernel refuses it while a shared mapping could become writable, as that of a file that is
    open for writing, even if the mapping is read-only (``mm/memfd.c``).
    """
    if not mapping.shared or "w" in mapping.rights:
        return False
    with contextlib.suppress(OSError):
        if os.lstat(mapping.link).st_mode & stat.S_IWUSR:
            with closing(os.open(mapping.link, os.O_RDONLY | os.O_CLOEXEC)) as number:
                return bool(fcntl.fcntl(number, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)
    return False


def _is_guarded(process: Process) -> bool:
    anonymous = (each for each in process.mappings if not each.inode and each.rights[1:] == "w-p")
    with contextlib.suppress(OSError):
        return any(map(has_guard_pages, anonymous))
    return False


def _without_a_name(context: Context, mapping: Mapping) -> str:
    """What a mapped file is that CRIU finds only by the link of /proc; empty if it can open it.

    To follow the link takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in the first user namespace.
    """
    name = mapping.name
    if not name.startswith("/") or not mapping.inode or name.startswith(WITHOUT_FILE):
        return ""
    if name.endswith(" (deleted)"):
        what = "that is deleted"
    elif context.opts.unprivileged and _has_other_numbers(mapping):
        what = "of an overlay whose layers are on different file systems"
    else:
        return ""
    try:
        close(os.open(mapping.link, os.O_PATH | os.O_CLOEXEC))
    except PermissionError:
        return what
    except OSError:
        return ""
    return ""


def _has_other_numbers(mapping: Mapping) -> bool:
    """Whether stat(2) returns another device than the mapping has. CRIU compares the two."""
    major, _, minor = mapping.device.partition(":")
    device = os.makedev(int(major, 16), int(minor, 16))
    try:
        seen = os.stat(f"/proc/{mapping.pid}/root{mapping.name}")
    except OSError:
        return False
    if seen.st_dev == device or seen.st_ino != mapping.inode:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(
        mount.device == number and mount.kind == "overlay" for mount in mounts_of(mapping.pid)
    )
