"""What this host is and has, as far as ``/proc`` and a socket tell."""

from __future__ import annotations

import errno
import socket
import stat

from .._support.kernel_text import read_lines, read_text

ANY = ("0.0.0.0", "::")


def lines(path: str) -> list[str]:
    try:
        return read_lines(path)
    except OSError:
        return []


def number(path: str) -> int:
    result = lines(path)
    return int(result[0]) if result and result[0].isdigit() else 0


def state(pid: int) -> str:
    """The state letter of a process or thread; empty where the id is free."""
    try:
        return read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def type_of(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def is_ours(family: str, address: str) -> bool:
    """Whether a socket can have this address here; a port is not taken for it."""
    kind = socket.AF_INET6 if family == "INET6" else socket.AF_INET
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def listening() -> dict[tuple[str, int], set[str]]:
    """Ports that are listened to, and on which addresses."""
    result: dict[tuple[str, int], set[str]] = {}
    for family, name in (("INET", "tcp"), ("INET6", "tcp6")):
        for line in lines(f"/proc/net/{name}")[1:]:
            words = line.split()
            if len(words) > 3 and words[3] == "0A":
                address, _, port = words[1].partition(":")
                data = bytes.fromhex(address)
                data = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
                kind = socket.AF_INET6 if family == "INET6" else socket.AF_INET
                text = socket.inet_ntop(kind, data)
                result.setdefault((family, int(port, 16)), set()).add(text)
    return result


def abstract_names() -> frozenset[str]:
    return frozenset(
        words[7] for line in lines("/proc/net/unix") if len(words := line.split(None, 7)) == 8
    )
