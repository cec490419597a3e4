"""Terminals: both ends must be in the tree, and so must the leader of their session.

``criu/tty.c``: ``tty_verify_active_pairs``, ``dump_verify_tty_sids``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ..._failures.log_excerpt import known
from ..._system.process import all_pids, stat_of
from ..._system.process_snapshot import Descriptor
from ...findings import Finding
from .context import Context, needs, stops

MASTER = (5, 2)
SLAVES = range(136, 144)
CONSOLES = ((5, 0), (5, 1))
SERIAL = (188, 204)
VIRTUAL = 4


def is_terminal(context: Context, fd: Descriptor) -> bool:
    """Whether a device is a terminal that CRIU supports."""
    major, minor = fd.device
    known_kind = (
        (major, minor) == MASTER
        or major in SLAVES
        or (major, minor) in CONSOLES
        or major in SERIAL
        or (major == VIRTUAL and minor <= 63)
    )
    return known_kind or context.external(_key(fd))


def _key(fd: Descriptor) -> str:
    return f"tty[{fd.stat.st_rdev:x}:{fd.stat.st_dev:x}]"


def look(context: Context) -> Iterator[Finding]:
    """Findings on terminals with an end or a session leader outside of the tree."""
    masters: dict[int, Descriptor] = {}
    slaves: dict[int, Descriptor] = {}
    for fd in context.tree.descriptors():
        if not stat.S_ISCHR(fd.stat.st_mode) or context.external(_key(fd)):
            continue
        major, minor = fd.device
        if (major, minor) == MASTER:
            masters.setdefault(int(fd.value("tty-index") or "-1"), fd)
        elif major in SLAVES:
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


def _half(context: Context, fd: Descriptor) -> Iterator[Finding]:
    if context.opts.orphan_pts_master or context.opts.shell_job:
        return
    container = context.tree.has_own("pid")
    yield needs(
        context,
        "terminal-outside",
        "the master of its terminal is outside of the tree",
        known("pty-half").cure,
        sets={"orphan_pts_master": True} if container else {"shell_job": True},
        pid=fd.pid,
        fd=fd.number,
        path=fd.link,
        failure="pty-half",
    )


def _dangling(context: Context, fd: Descriptor) -> Iterator[Finding]:
    """The session of the terminal: its leader must be in the tree."""
    major, minor = fd.device
    if (major, minor) == MASTER:
        index = int(fd.value("tty-index") or "-1")
        device = os.makedev(SLAVES.start + index // 256, index % 256)
        leaders = _sessions_on(device)
    else:
        leaders = {
            process.session
            for process in context.tree.alive
            if process.pid == fd.pid and _is(process.terminal, fd.stat.st_rdev)
        }
    for leader in leaders - context.tree.pids:
        yield needs(
            context,
            "terminal-of-a-shell",
            f"its terminal belongs to a session outside of the tree, which process {leader} leads",
            known("dangling-tty").cure,
            sets={"shell_job": True},
            pid=fd.pid,
            fd=fd.number,
            path=fd.link,
            failure="dangling-tty",
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
