"""Copies of another process's descriptors, which it closes and replaces meanwhile."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pycriu_native._system import descriptors


def test_closed_and_replaced_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only descriptors that are still of the kind are copied, and no copy remains open."""
    with socket.socket(socket.AF_UNIX) as ours, open(tmp_path / "file", "wb") as file:
        closed = os.dup(ours.fileno())
        os.close(closed)
        outdated = [(number, "socket:[1]") for number in (file.fileno(), closed, ours.fileno())]
        monkeypatch.setattr(descriptors, "links_of", lambda pid: iter(outdated))
        before = set(os.listdir("/proc/self/fd"))
        inodes = [os.fstat(fd).st_ino for fd in descriptors.descriptors_of(os.getpid(), "socket:")]
        assert inodes == [os.fstat(ours.fileno()).st_ino]
        assert set(os.listdir("/proc/self/fd")) == before


CLOSED = """
import os
for fd in range(3):
    os.close(fd)
from pycriu_native._system.socket_pair import pair
numbers = [sock.fileno() for sock in pair()]
os._exit(min(numbers))
"""


def test_sockets_where_standard_descriptors_are_closed() -> None:
    """Sockets have other numbers: libcriu prints to 2, and a worker inherits no number below 3."""
    lowest = subprocess.run([sys.executable, "-c", CLOSED], check=False).returncode
    assert lowest > 2


OUTPUT_WHERE_CLOSED = """
import os
for fd in range(3):
    os.close(fd)
from pycriu_native._recovery import network_lock
os._exit(network_lock._run("/bin/sh", "-c", "echo a rule") != (0, "a rule\\n"))
"""


def test_output_where_standard_descriptors_are_closed() -> None:
    """The rules of iptables are read, so that those of a killed CRIU are found."""
    program = [sys.executable, "-c", OUTPUT_WHERE_CLOSED]
    assert subprocess.run(program, check=False).returncode == 0
