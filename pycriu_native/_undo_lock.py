"""Connections after a lazy dump that was undone: CRIU leaves them locked, so they are freed here.

When a dump with ``lazy_pages`` fails or is refused once its images are written, CRIU lets the
process run on, but neither takes its network lock away nor its sockets out of repair mode
(``criu/cr-dump.c``, ``cr_dump_finish``: it unlocks before it serves; seen with 4.2.1). The
process would find every connection dead, and the lock's table would stay for ever.

Locks of nftables are taken away; the rules of iptables are left to the caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterable

from . import _chronicle
from ._descriptors import descriptors_of
from ._program import SEARCH_PATH

TCP_REPAIR = 19
REPAIR_OFF = -1
"""Without the probe that would say something to the other side (TCP_REPAIR_OFF_NO_WP)."""


def free_connections(pids: Iterable[int]) -> None:
    """Take the TCP connections of these processes out of repair mode, and CRIU's tables away."""
    namespaces: dict[str, int] = {}
    locked = False
    for pid in pids:
        with contextlib.suppress(OSError):
            namespaces[os.readlink(f"/proc/{pid}/ns/net")] = pid
            for fd in descriptors_of(pid, "socket:"):
                locked |= _take_out(fd)
    if locked:
        for pid in namespaces.values():
            _drop_tables(pid)


def _take_out(fd: int) -> bool:
    with socket.socket(fileno=fd) as sock, contextlib.suppress(OSError):
        if sock.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR) == 1:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF)
            return True
    return False


def _drop_tables(pid: int) -> None:
    """Delete the tables that CRIU has made in the network namespace of a process."""
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net", "nft"]
    try:
        told = _run([*enter, "-j", "list", "tables"])
        for entry in json.loads(told).get("nftables", ()):
            table = entry.get("table", {})
            if str(table.get("name", "")).startswith("CRIU-"):
                _run([*enter, "delete", "table", table["family"], table["name"]])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        _chronicle.warn("CRIU's network lock was not taken away: %s", error)


def _run(words: list[str]) -> str:
    return subprocess.run(
        words, capture_output=True, text=True, check=True, env={"PATH": SEARCH_PATH}, timeout=10
    ).stdout
