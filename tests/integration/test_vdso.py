"""Processes that have unmapped their vDSO, as programs under valgrind do."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, dump, restore
from pycriu_native.images import decode

from .conftest import Spawn
from .support.processes import eventually, kill

WITHOUT_VDSO = """
    import ctypes, os, signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    (row,) = [line for line in open("/proc/self/maps") if "[vdso]" in line]
    begin, end = (int(each, 16) for each in row.split()[0].split("-"))
    munmap = ctypes.CDLL(None).munmap
    (HERE / "ready").write_text(str(os.getpid()))
    munmap(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin))
    signal.sigwait([signal.SIGUSR1])  # reads no clock, which would need the vDSO
    os.close(os.open(HERE / "again", os.O_CREAT))
    signal.sigwait([signal.SIGUSR1])
"""
VVAR = 1 << 12
"""The bit of a mapping of the vDSO's data (``criu/include/image.h``)."""


def maps(pid: int) -> str:
    """The mappings of a process."""
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.cures("lone-vvar")
def test_a_process_without_a_vdso(orphans: None, spawn: Spawn, images: Path) -> None:
    """A process without a vDSO is restored; CRIU alone dumps it but cannot restore it."""
    target = spawn(WITHOUT_VDSO)
    eventually(lambda: "[vdso]" not in maps(target.pid), "the end of its vDSO")
    had_data = "[vvar]" in maps(target.pid)
    target.dump(CriuOpts(images_directory=images))
    (entry,) = decode(images / f"mm-{target.pid}.img")["entries"]
    assert had_data
    assert not any(int(mapping["status"]) & VVAR for mapping in entry["vmas"])
    restore(CriuOpts(images_directory=images))
    os.kill(target.pid, signal.SIGUSR1)
    eventually((target.directory / "again").exists, "an answer")
    kill(target.pid)


def test_others_keep_theirs(spawn: Spawn, images: Path) -> None:
    """Images of a process with a vDSO are not changed."""
    target = spawn()
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    (entry,) = decode(images / f"mm-{target.pid}.img")["entries"]
    assert any(int(mapping["status"]) & VVAR for mapping in entry["vmas"])
