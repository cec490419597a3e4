"""Descriptors that are not files: kernel objects, devices, namespaces, watches.

Sources of what CRIU supports: ``criu/files.c``, ``dump_one_file``; of watches ``criu/fsnotify.c``.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import Any

from ..._failures.log_excerpt import known
from ..._support.unpatched import closing
from ..._system.descriptors import opened_directory, where
from ..._system.process_snapshot import Descriptor
from ..._system.system_calls import open_by_handle
from ..._transport.base import Via
from ..._transport.worker import worker_of
from ...errors import CriuError
from ...findings import Finding
from .context import Context, Findings, lost, no_restore, note, on, stops
from .files import is_memory, is_plain_device, unread_bytes
from .terminals import MASTER, is_terminal

SAVED = ("[eventfd]", "[eventpoll]", "inotify", "[fanotify]", "[signalfd]", "[timerfd]", "[pidfd]")
"""Types of ``anon_inode:`` that CRIU saves; some only under the conditions checked below."""
GPUS = {195: "NVIDIA", 226: "a GPU (DRM)"}
"""Major numbers of devices with a CRIU plugin."""
TIMER_CLOCKS = (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)
"""Clocks of timerfds that CRIU saves."""
TUN = (10, 200)
"""Numbers of /dev/net/tun."""
WITHOUT_HANDLES = ("proc", "sysfs", "devpts", "debugfs", "tracefs", "securityfs", "configfs")
"""File systems of the kernel in which CRIU has to search a watched file. They are small."""
NOT_FOUND_ON = ("tmpfs", "devtmpfs")
"""File systems on which CRIU cannot find a watched file that has no name."""


def look(context: Context) -> Findings:
    for fd in context.tree.descriptors():
        mode = fd.stat.st_mode
        if stat.S_ISCHR(mode) and fd.device == TUN and not context.tree.has_own("net"):
            message = "it has a tun or tap device of the host open"
            yield stops("tun", message, failure="tun-of-the-host", **on(fd))
        elif fd.flags & os.O_PATH and _has_a_state(context, fd):
            yield _path_descriptor(context, fd)
        elif fd.link.startswith("anon_inode:"):
            yield from _anonymous(context, fd)
        elif fd.link.startswith("pidfd:"):
            yield from _pidfd(context, fd)
        elif stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not _is_saved_device(context, fd)):
            yield device(fd.pid, fd.device, fd.link, fd=fd.number)
        elif ":[" in fd.link and not fd.is_socket and not fd.is_pipe:
            yield from _namespace(context, fd)


def _has_a_state(context: Context, fd: Descriptor) -> bool:
    """Whether CRIU saves or restores more of it than the path."""
    mode = fd.stat.st_mode
    if stat.S_ISCHR(mode):
        return fd.device == TUN or is_terminal(context, fd)
    return (
        stat.S_ISSOCK(mode)
        or stat.S_ISFIFO(mode)
        or fd.link.startswith("anon_inode:")
        or is_memory(fd)
    )


def _path_descriptor(context: Context, fd: Descriptor) -> Finding:
    """A descriptor with O_PATH. CRIU saves the state once, by the first descriptor that has it."""

    def has_saved_it(other: Descriptor) -> bool:
        of_one_file = (other.stat.st_dev, other.stat.st_ino) == (fd.stat.st_dev, fd.stat.st_ino)
        return of_one_file and not other.flags & (os.O_PATH | os.O_WRONLY)

    is_each_saved = fd.device in (MASTER, TUN) or fd.link.startswith("anon_inode:")
    is_saved = not is_each_saved and any(map(has_saved_it, context.tree.descriptors()))
    return (no_restore if is_saved or is_memory(fd) else stops)(
        "path-descriptor",
        "it is open with O_PATH, and no file, directory or symbolic link",
        failure="path-descriptor",
        **on(fd),
    )


def _is_saved_device(context: Context, fd: Descriptor) -> bool:
    return is_plain_device(fd.device) or is_terminal(context, fd)


def device(pid: int, numbers: tuple[int, int], path: str, **more: Any) -> Finding:
    """An open or mapped device."""
    of = f" of {GPUS[numbers[0]]}" if numbers[0] in GPUS else ""
    if path.startswith("/dev/kfd"):
        of = " of an AMD GPU"
    return stops(
        "gpu" if of else "device",
        f"it uses a device{of} ({numbers[0]}:{numbers[1]}), which CRIU saves only by a plugin",
        failure="device-fd",
        pid=pid,
        path=path,
        **more,
    )


def _anonymous(context: Context, fd: Descriptor) -> Findings:
    name = fd.link.removeprefix("anon_inode:")
    about = on(fd)
    if name == "[io_uring]":
        yield stops(
            "io-uring", "it uses io_uring, which CRIU cannot save", failure="io-uring", **about
        )
    elif name == "[pidfd]":
        yield from _pidfd(context, fd)
    elif name in ("inotify", "[fanotify]"):
        yield from _watches(context, fd)
    elif name == "[timerfd]" and int(fd.value("clockid") or "0") not in TIMER_CLOCKS:
        message = "it has a timer that can wake the system from a suspend"
        yield stops("timerfd-clock", message, failure="timerfd-clock", **about)
    elif name == "bpf-map":
        if _is_without_libbpf(context.via):
            yield stops(
                "kernel-object",
                "it has a map of BPF open, and this CRIU was built without libbpf, which saves it",
                failure="anon-fd",
                **about,
            )
    elif name not in SAVED:
        message = "it has an object of the kernel open that CRIU cannot save"
        yield stops("kernel-object", message, failure="anon-fd", **about)


def _is_without_libbpf(via: Via) -> bool:
    """Whether the program is an ELF file that neither needs nor contains libbpf."""
    worker = worker_of(via)
    with contextlib.suppress(OSError, CriuError):
        if worker is not None:
            with open(worker.name(), "rb") as file:
                text = file.read()
            return text.startswith(b"\x7fELF") and b"libbpf" not in text
    return False


def _pidfd(context: Context, fd: Descriptor) -> Findings:
    of = int(fd.value("Pid") or "-1")
    about = {"pid": fd.pid, "fd": fd.number}
    if context.is_older_than("4.1"):
        message = f"it holds a pidfd of process {of}, and CRIU saves pidfds since 4.1"
        yield stops("pidfd", message, failure="anon-fd", **about)
    elif of > 0 and context.is_outside(of):
        message = f"it holds a pidfd of process {of} outside of the tree"
        yield stops("pidfd-outside", message, failure="pidfd-outside", **about)
    elif fd.flags & os.O_EXCL:
        message = "it holds a pidfd of a thread"
        yield stops("pidfd-of-a-thread", message, failure="pidfd-thread", **about)


def _namespace(context: Context, fd: Descriptor) -> Findings:
    """The file of a namespace, ``net:[4026531840]``; CRIU saves those of the tree."""
    kind = fd.link.partition(":")[0]
    if kind not in context.tree.root.namespaces:
        return
    about = on(fd)
    what = "it has a namespace open in which no process of the tree is"
    if fd.link in context.tree.in_namespaces(kind):
        return
    if fd.link != context.tree.ours.namespaces[kind]:
        yield stops("namespace-outside", what, failure="ns-outside", **about)
    else:
        yield no_restore(
            "namespace-outside",
            what,
            failure="ns-of-no-process",
            cure=known("ns-outside").cure,
            **about,
        )


# ---- watches ----


def _watches(context: Context, fd: Descriptor) -> Findings:
    about = on(fd)
    if size := unread_bytes(fd):
        yield lost(
            "events",
            f"{size} bytes of events that it has not read are dropped",
            cure="make the program read the state of the watched files again after the restore",
            **about,
        )
    for line in fd.info.get("fanotify", ()):
        if line.startswith("sdev:"):
            yield lost(
                "watch-of-a-file-system",
                "CRIU does not save a fanotify mark of a whole file system",
                cure="make the program mark it again after the restore",
                **about,
            )
    for line in [*fd.info.get("inotify", ()), *fd.info.get("fanotify", ())]:
        values = dict(word.split(":", 1) for word in line.split() if ":" in word)
        if "f_handle" in values:
            yield from _watch(context, fd, values)


def _watch(context: Context, fd: Descriptor, values: dict[str, str]) -> Findings:
    number = int(values["sdev"], 16)
    inode = int(values["ino"], 16)
    on = f"{number >> 20}:{number & 0xFFFFF}"
    mounts = [mount for mount in context.mounts.all if mount.device == on]
    about = {"pid": fd.pid, "fd": fd.number}
    opened = False
    for mount in mounts:
        base = context.mounts.base(mount)
        path = _by_handle(base + mount.place, values)
        if path is None:
            continue
        opened = True
        with contextlib.suppress(OSError):
            if os.stat(base + path, follow_symlinks=False).st_ino == inode:
                return
    kind = mounts[0].kind if mounts else ""
    if opened and kind not in NOT_FOUND_ON:
        message = "it watches a file that was deleted; the watch is saved without a path"
        yield note("watch-without-a-path", message, **about)
    elif opened:
        yield stops(
            "watch-without-a-path",
            f"it watches a file on {kind} that has no name any more",
            failure="irmap",
            cure="make the program end the watch; force_irmap does not help on that file system",
            **about,
        )
    else:
        sets: dict[str, Any] = {"force_irmap": True}
        if kind in WITHOUT_HANDLES:
            sets["irmap_paths"] = (mounts[0].place,)
        message = "CRIU does not find the path of a file or directory that it watches"
        yield context.needs("watch-not-found", message, sets=sets, failure="irmap", **about)


def _by_handle(mount: str, values: dict[str, str]) -> str | None:
    """The path of the file of a handle on a mount; None if it cannot be opened."""
    size = int(values["fhandle-bytes"], 16)
    handle = bytes.fromhex(values["f_handle"])[:size].ljust(size, b"\0")
    with contextlib.suppress(OSError):
        with opened_directory(mount) as at:
            result = open_by_handle(at, int(values["fhandle-type"], 16), handle)
        with closing(result):
            return where(result)
    return None
