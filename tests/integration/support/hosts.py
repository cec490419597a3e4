"""Hosts for tests: network namespaces joined by veth pairs."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

import pytest

from .leftovers import RUN, links
from .processes import eventually, kill

_numbers = itertools.count()


def run(*command: str) -> str:
    """Run a command and return its output; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Host:
    """A named network namespace; the empty name is the caller's namespace."""

    name: str

    @property
    def prefix(self) -> list[str]:
        """The prefix of a command that runs there."""
        return ["ip", "netns", "exec", self.name] if self.name else []

    @property
    def path(self) -> str:
        """The namespace's file."""
        return f"/run/netns/{self.name}" if self.name else "/proc/self/ns/net"

    def run(self, *command: str) -> str:
        """Run a command there and return its output; it must succeed."""
        return run(*self.prefix, *command)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread, and all that it starts meanwhile, to this host.

        ``ip netns exec`` also makes a mount namespace, which a dump would have to include.
        """
        with open("/proc/thread-self/ns/net") as ours, open(self.path) as theirs:
            _move_to(theirs)
            try:
                yield
            finally:
                _move_to(ours)


def _move_to(namespace: TextIO) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


OURS = Host("")
NAMES = "/run/netns"
"""The directory of ip's named network namespaces."""


def _end_all_in(name: str) -> None:
    """End the processes in a namespace, which would outlive its name."""
    for pid in map(int, run("ip", "netns", "pids", name).split()):
        kill(pid)


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """A new host with only a loopback; its processes end with the context."""
    if shutil.which("ip") is None:
        pytest.skip("no ip command (iproute2) is installed")
    made = Host(f"pn{RUN}-{next(_numbers)}")
    was_mounted = os.path.ismount(NAMES)
    run("ip", "netns", "add", made.name)
    try:
        made.run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        _end_all_in(made.name)
        run("ip", "netns", "del", made.name)
        if not was_mounted and not os.listdir(NAMES):
            run("umount", NAMES)  # ip has made it a mount point for the first name


@contextlib.contextmanager
def cable(one: Host, other: Host) -> Iterator[tuple[str, str]]:
    """Join two hosts by a veth pair; returns the addresses of its ends, in a new network."""
    number = (int(RUN, 16) * 8 + next(_numbers)) % 2**15
    base = f"198.{18 + number // 2**14}.{number // 64 % 256}."
    ends = [
        (host, f"pn{RUN}{end}{number % 1000}", f"{base}{number % 64 * 4 + place}")
        for place, (host, end) in enumerate(((one, "a"), (other, "b")), 1)
    ]
    (_, first, _), (_, second, _) = ends
    run("ip", "link", "add", first, "type", "veth", "peer", "name", second)
    try:
        for there, link, address in ends:
            if there.name:
                run("ip", "link", "set", link, "netns", there.name)
            there.run("ip", "address", "add", f"{address}/30", "dev", link)
            there.run("ip", "link", "set", link, "up")
        yield ends[0][2], ends[1][2]
    finally:
        with contextlib.suppress(AssertionError):
            one.run("ip", "link", "del", first)
        eventually(lambda: first not in links(), "the cable's end")
