"""Snapshots of everything that a test could leave behind."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .processes import children


def _descriptors() -> frozenset[str]:
    result = []
    for entry in os.listdir("/proc/self/fd"):
        if entry in ("0", "1", "2"):
            continue  # pytest's own, which it changes when the run is interrupted
        try:
            result.append(f"{entry} -> {os.readlink(f'/proc/self/fd/{entry}')}")
        except FileNotFoundError:
            continue  # the descriptor that lists this directory
    return frozenset(result)


def _mounts() -> frozenset[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    result = frozenset(" ".join(line.split()[3:5]) for line in lines)
    # The first `ip netns add` after boot makes this one and keeps it.
    return frozenset(mount for mount in result if not mount.endswith(" /run/netns"))


RUN = os.urandom(3).hex()
"""Part of the name of every object that other programs can see, to distinguish it from theirs."""


def _cgroups() -> frozenset[str]:
    return frozenset(path for path, _, _ in os.walk("/sys/fs/cgroup") if RUN in path)


def _names(directory: str) -> frozenset[str]:
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return frozenset(name for name in names if RUN in name)


def links() -> frozenset[str]:
    """The links of this network namespace."""
    return frozenset(name for _, name in socket.if_nameindex())


def _locks() -> frozenset[str]:
    """CRIU's network locks in this network namespace."""
    try:
        listing = ["nft", "list", "tables"]
        message = subprocess.run(listing, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return frozenset()
    return frozenset(line for line in message.stdout.splitlines() if "CRIU" in line)


SETS = ("children", "descriptors", "mounts", "cgroups", "namespaces", "links", "locks")


@dataclass(frozen=True)
class Snapshot:
    """The objects that exist at one time."""

    children: frozenset[int]
    descriptors: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[str]
    locks: frozenset[str]
    threads: int

    @classmethod
    def take(cls) -> Snapshot:
        """Take a snapshot."""
        return cls(
            children=frozenset(children()),
            descriptors=_descriptors(),
            mounts=_mounts(),
            cgroups=_cgroups(),
            namespaces=_names("/run/netns"),
            links=links(),
            locks=_locks(),
            threads=len(os.listdir("/proc/self/task")),
        )

    def grown_since(self, before: Snapshot) -> dict[str, object]:
        """The objects that are not in an earlier snapshot."""
        grown: dict[str, object] = {}
        for name in SETS:
            more = getattr(self, name) - getattr(before, name)
            if more:
                grown[name] = sorted(more)
        if self.threads > before.threads:
            grown["threads"] = self.threads - before.threads
        return grown
