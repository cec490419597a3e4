"""Properties of this host, from ``/proc``.

For single settings, such as those of sysctl, callers pass the path, which their findings name.
"""

from __future__ import annotations

import os
import stat

from .._support.kernel_text import read_lines, read_text


def read(path: str) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return read_text(path)
    except OSError:
        return ""


def lines(path: str) -> list[str]:
    """The lines of a file; none if it cannot be read."""
    try:
        return read_lines(path)
    except OSError:
        return []


def number(path: str) -> int:
    """The number in a file; 0 if there is none."""
    result = lines(path)
    return int(result[0]) if result and result[0].isdigit() else 0


def boot_id() -> str:
    """The UUID of this boot of this host; ``OSError``."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()


def boot_time() -> float:
    """The time of the system's start, in seconds since 1970; 0 if it cannot be read."""
    return next((float(each[6:]) for each in lines("/proc/stat") if each.startswith("btime ")), 0.0)


def type_of(mode: int) -> str:
    """The type of a file, for a message, from its ``st_mode``."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a symbolic link",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def lack_of(directory: str) -> str:
    """Why a path is not an existing directory; names the first missing part."""
    if os.path.lexists(directory):
        return "it is no directory"
    try:
        above = os.path.dirname(os.path.abspath(directory))
    except FileNotFoundError:
        return "the working directory does not exist"
    if os.path.isdir(above):
        return "it does not exist"
    while not os.path.lexists(os.path.dirname(above)):
        above = os.path.dirname(above)
    return f"{above} {'is no directory' if os.path.lexists(above) else 'does not exist'}"
