"""The file with the performance counters of a Java virtual machine (``hsperfdata``).

A Java virtual machine maps the file ``/tmp/hsperfdata_USER/PID`` for ``jps`` and ``jstat``, and
unlinks it at its end. CRIU saves the contents of an unlinked file, and creates a file for each
restore, so that the end of a copy does not remove a file that the next start needs.
"""

from __future__ import annotations

import os
import re
import stat

from .._support.unpatched import closing
from .._system.process_snapshot import Process, Tree

_PATH = re.compile(r"(/.*/hsperfdata_[^/]+)/(\d+)")

CURE = "take the snapshot without leave_running, or start java with -XX:-UsePerfData"


def is_counters(path: str) -> bool:
    return _PATH.fullmatch(path) is not None


def unlink_counters(tree: Tree) -> None:
    """Unlink the files that the processes have mapped and that belong to their user."""
    for process in tree.alive:
        for mapping in process.mappings:
            if mapping.inode and (found := _PATH.fullmatch(mapping.name)):
                _unlink(process, found[1], found[2], mapping.inode)


def _unlink(process: Process, directory: str, name: str, inode: int) -> None:
    user = int(process.status["Uid"].split()[1])
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with closing(os.open(f"/proc/{process.pid}/root{directory}", flags)) as fd:
            seen = os.stat(name, dir_fd=fd, follow_symlinks=False)
            owners = {os.fstat(fd).st_uid, seen.st_uid}
            if seen.st_ino == inode and stat.S_ISREG(seen.st_mode) and owners == {user}:
                os.unlink(name, dir_fd=fd)
    except OSError:
        return  # another program has removed it, or it cannot be removed
