"""Terminals: both ends must be in the tree, and so must the leader of their session.

``criu/tty.c``: ``tty_verify_active_pairs``, ``dump_verify_tty_sids``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
import termios

from ..._system.descriptors import copied
from ..._system.id_maps import unmapped
from ..._system.process import all_pids, stat_of
from ..._system.process_snapshot import Descriptor, Process
from ..._system.system_calls import is_same_file
from .context import Context, Findings, no_restore, on, stops

MASTER = (5, 2)
SLAVES = range(136, 144)
CURRENT = (5, 0)
"""/dev/tty: the terminal of the session of the process that opened it."""
CONSOLES = (CURRENT, (5, 1))
TIOCGSID = 0x5429
"""``asm-generic/ioctls.h``; the ``termios`` module lacks it."""
SERIAL = (188, 204)
VIRTUAL = 4


def is_terminal(context: Context, fd: Descriptor) -> bool:
    """Whether a device is a terminal that CRIU supports."""
    major, minor = fd.device
    return (
        fd.device in (MASTER, *CONSOLES)
        or major in (*SLAVES, *SERIAL)
        or (major == VIRTUAL and 1 <= minor <= 63)
        or context.external(_key(fd))
    )


def _key(fd: Descriptor) -> str:
    return f"tty[{fd.stat.st_rdev:x}:{fd.stat.st_dev:x}]"


def look(context: Context) -> Findings:
    """Findings on terminals with an end or a session leader outside of the tree."""
    masters: dict[int, Descriptor] = {}
    slaves: dict[int, Descriptor] = {}
    for fd in context.tree.descriptors():
        if not stat.S_ISCHR(fd.stat.st_mode) or context.external(_key(fd)):
            continue
        major, minor = fd.device
        if fd.device == MASTER:
            masters.setdefault(int(fd.value("tty-index") or "-1"), fd)
        elif major in SLAVES and not _is_hung_up(fd):
            slaves.setdefault((major - SLAVES.start) * 256 + minor, fd)
    alone = [fd for index, fd in sorted(slaves.items()) if index not in masters]
    if len(alone) > 1:
        yield stops(
            "terminals-outside",
            f"the masters of {len(alone)} terminals are outside of the tree; CRIU can do with one",
            pid=alone[0].pid,
            path=", ".join(fd.link for fd in alone),
            failure="pty-half",
            cure='have them closed, or external=["tty[rdev:dev]"] for each',
        )
    elif alone:
        yield from _half(context, alone[0])
    for fd in (*masters.values(), *slaves.values()):
        yield from _dangling(context, fd)
    yield from _not_mapped([*masters.values(), *slaves.values()])
    yield from _current(context)


def _not_mapped(terminals: list[Descriptor]) -> Findings:
    """Terminals whose owner or group CRIU cannot set (``criu/tty.c``: ``restore_tty_params``)."""
    uid, gid = unmapped("uid"), unmapped("gid")
    for fd in terminals:
        if fd.stat.st_uid == uid or fd.stat.st_gid == gid:
            message = "the owner or the group of its terminal is not mapped in this user namespace"
            yield no_restore("terminal-owner", message, failure="tty-owner", **on(fd))
            return


def _current(context: Context) -> Findings:
    """/dev/tty: its session's first terminal must be of the same process (``tty_verify_ctty``)."""
    opened: list[tuple[Process, Descriptor]] = []
    pairs: list[tuple[Process, tuple[int, int]]] = []
    for process in context.in_order_of_dump():
        for fd in process.descriptors:
            if not stat.S_ISCHR(fd.stat.st_mode) or context.external(_key(fd)):
                continue
            if fd.device == MASTER or fd.device[0] in SLAVES:
                pairs.append((process, _session_and_group(process, fd)))
            elif fd.device == CURRENT and not any(is_same_file(fd, o) for _, o in opened):
                opened.append((process, fd))
    for process, fd in opened:
        session = process.stat.session if process.stat.terminal else 0
        first = next((holder for holder, ids in pairs if ids == (session, session)), None)
        if first is not process:
            yield context.needs(
                "terminal-of-the-session",
                "it has /dev/tty open, and no other descriptor of its session's terminal"
                if first is None
                else "it has /dev/tty open, whose terminal is saved with another process, "
                f"{first.pid}",
                cure=f'external=["{_key(fd)}"] on the dump, and another terminal on the restore: '
                f'inherit_fds=[(fd, "{_key(fd)}")]; or close /dev/tty before the dump',
                sets={"external": (_key(fd),)},
                failure="ctty",
                pid=process.pid,
                fd=fd.number,
                path=fd.link,
            )


def _session_and_group(process: Process, fd: Descriptor) -> tuple[int, int]:
    """Session and foreground process group of a terminal, as its holder reads them; 0 for none."""
    if fd.device != MASTER:
        own = process.stat
        return (own.session, own.foreground) if _is(own.terminal, fd.stat.st_rdev) else (0, 0)
    result = [0, 0]
    with contextlib.suppress(OSError), copied(fd.pid, fd.number) as number:
        for nth, request in enumerate((TIOCGSID, termios.TIOCGPGRP)):
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(number, request, bytes(4))
                result[nth] = int.from_bytes(answer, sys.byteorder)
    return result[0], result[1]


def _is_hung_up(fd: Descriptor) -> bool:
    """Whether the master of a terminal is closed: CRIU saves that end alone."""
    with contextlib.suppress(OSError), copied(fd.pid, fd.number) as number:
        try:
            fcntl.ioctl(number, termios.TIOCGPGRP, bytes(4))
        except OSError as error:
            return error.errno == errno.EIO
        return False
    return fd.link.endswith(" (deleted)")


def _half(context: Context, fd: Descriptor) -> Findings:
    if context.opts.orphan_pts_master or context.opts.shell_job:
        return
    container = context.tree.has_own("pid")
    yield context.needs(
        "terminal-outside",
        "the master of its terminal is outside of the tree",
        sets={"orphan_pts_master": True} if container else {"shell_job": True},
        failure="pty-half",
        **on(fd),
    )


def _dangling(context: Context, fd: Descriptor) -> Findings:
    """The session of the terminal: its leader must be in the tree."""
    if fd.device == MASTER:
        index = int(fd.value("tty-index") or "-1")
        device = os.makedev(SLAVES.start + index // 256, index % 256)
        leaders = _sessions_on(device)
    else:
        leaders = {
            process.stat.session
            for process in context.tree.alive
            if process.pid == fd.pid and _is(process.stat.terminal, fd.stat.st_rdev)
        }
    for leader in leaders - context.tree.pids:
        yield context.needs(
            "terminal-of-a-shell",
            f"its terminal belongs to a session outside of the tree, which process {leader} leads",
            sets={"shell_job": True},
            failure="dangling-tty",
            **on(fd),
        )


def _is(packed: int, device: int) -> bool:
    """Whether the terminal's number of /proc/PID/stat is this device."""
    major, minor = packed >> 8 & 0xFFF, (packed & 0xFF) | (packed >> 12 & 0xFFF00)
    return packed != 0 and (major, minor) == (os.major(device), os.minor(device))


def _sessions_on(device: int) -> set[int]:
    """The sessions whose terminal a device is."""
    result = set()
    for pid in all_pids():
        stat = stat_of(pid)
        if stat is not None and _is(stat.terminal, device):
            result.add(stat.session)
    return result
